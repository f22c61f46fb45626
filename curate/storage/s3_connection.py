"""The lean S3 client's way to its bucket: the address, whom TLS trusts, and the environment's proxy and keys."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

from urllib3 import PoolManager, ProxyManager, Timeout, make_headers
from urllib3.exceptions import HTTPError
from urllib3.util import Url, parse_url

from curate.errors import ConfigError
from curate.storage.ports import ServerClock
from curate.storage.s3_clock import leave_dates_if_lost
from curate.storage.s3_settings import S3Settings
from curate.storage.sigv4 import Credentials, encode_path

_PORTS: Final = {"http": 80, "https": 443}


def find_credentials(environment: Mapping[str, str]) -> Credentials | None:
    """Return what AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN say; None without the first two."""
    access_key, secret_key = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if not access_key or not secret_key:
        return None
    return Credentials(access_key, secret_key, environment.get("AWS_SESSION_TOKEN") or None)


def locate_bucket(settings: S3Settings) -> Url:
    """Return scheme, host and port as requests name them, and the bucket's path there, without a slash at the end.

    Raises:
        ConfigError: `endpoint_url` is no address.
    """
    bucket = encode_path(settings.bucket)
    if settings.endpoint_url is None:
        host = f"s3.{settings.region}.amazonaws.com{'.cn' if settings.region.startswith('cn-') else ''}"
        if "." in bucket:  # Amazon's certificate is for names without
            return Url("https", host=host, path=f"/{bucket}")
        return Url("https", host=f"{bucket}.{host}")
    try:
        url = parse_url(settings.endpoint_url)
    except HTTPError as exc:
        raise ConfigError(f"endpoint_url: {exc}") from exc
    if url.scheme not in _PORTS or not url.host:
        raise ConfigError(f"endpoint_url: {url.url} is no address", hint="expected https://HOST or https://HOST:PORT")
    port = None if url.port == _PORTS[url.scheme] else url.port
    return Url(url.scheme, host=url.host, port=port, path=f"{(url.path or '').rstrip('/')}/{bucket}")


def make_pool(settings: S3Settings, address: Url, clock: ServerClock) -> PoolManager:
    """Return what opens connections and keeps them, through the environment's proxy where it names one.

    Raises:
        ConfigError: the environment's proxy or certificates are not usable.
    """
    options: dict[str, Any] = {
        "maxsize": settings.max_connections,
        "timeout": Timeout(connect=settings.connect_timeout_s, read=settings.read_timeout_s),
        "retries": False,
        "ssl_context": _make_context(clock) if address.scheme == "https" else None,
    }
    proxy = None if proxy_bypass(address.netloc or "") else getproxies().get(address.scheme or "")
    if proxy is None:
        return PoolManager(**options)
    try:
        url = parse_url(proxy if "://" in proxy else f"http://{proxy}")
        login = make_headers(proxy_basic_auth=unquote(url.auth)) if url.auth else None
        return ProxyManager(url.url, proxy_headers=login, **options)
    except HTTPError as exc:
        raise ConfigError(f"the environment's {address.scheme}_proxy cannot be used: {type(exc).__name__}") from exc


def _make_context(clock: ServerClock) -> ssl.SSLContext:
    """Trust whom AWS_CA_BUNDLE names, else whom the machine does, else, if that is nobody, the package certifi."""
    bundle = os.environ.get("AWS_CA_BUNDLE") or _find_certifi()
    try:
        context = ssl.create_default_context(cafile=bundle)
    except OSError as exc:
        raise ConfigError(f"cannot read certificates from {bundle}: {exc.strerror or exc}") from exc
    leave_dates_if_lost(context, clock.now())
    return context


def _find_certifi() -> str | None:
    """Return its file where the machine has no certificates; None where it has, and where nobody installed certifi."""
    machine = ssl.get_default_verify_paths()
    if machine.cafile or (machine.capath and any(Path(machine.capath).glob("*"))) or find_spec("certifi") is None:
        return None
    from certifi import where  # noqa: PLC0415 - not every device has it, and few need it

    return where()
