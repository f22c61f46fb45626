"""Signing S3 requests at the bucket's time. botocore signs at the machine's own, and S3 refuses what is 15 minutes off.

botocore reads the time inside its signers, so the store signs with one of its own, chosen for each request by the
client's public events; every answer's `Date`, a refusal's too, teaches the clock.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from botocore.auth import AUTH_TYPE_MAPS, SIGV4_TIMESTAMP, S3SigV4Auth

from curate.storage.ports import ServerClock

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

_SIGNER: Final = "s3v4-server-clock"
_CLOCK: Final = "gleaner_clock"
_SENT_S: Final = "gleaner_sent_s"

SOFTWARE_DATE: Final = datetime(2026, 11, 1, tzinfo=UTC)
"""Nobody ran this software earlier: a clock that says so is wrong."""
_NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for."""

MAX_SKEW: Final = timedelta(minutes=5)
"""A clock that was wrong by more when a request was refused may be why. S3 bears 15 minutes, others less."""


class _ServerClockAuth(S3SigV4Auth):
    """Signature version 4 at the time of the clock in the request's context."""

    def _modify_request_before_signing(self, request: Any) -> None:
        clock: ServerClock = request.context[_CLOCK]
        request.context["timestamp"] = clock.now().astimezone(UTC).strftime(SIGV4_TIMESTAMP)
        request.context[_SENT_S] = clock.monotonic()
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # the stubs leave it out


AUTH_TYPE_MAPS[_SIGNER] = _ServerClockAuth


def sign_by_clock(client: S3Client, clock: ServerClock) -> None:
    """Let every request of this client be signed at the clock's time, and every answer teach it."""

    def choose(context: dict[str, Any], **_: Any) -> str:
        context[_CLOCK] = clock
        return _SIGNER

    def learn(context: dict[str, Any], response_dict: dict[str, Any] | None, **_: Any) -> None:
        date = (response_dict or {}).get("headers", {}).get("date")
        if date and _SENT_S in context:
            # A date nobody can read teaches nothing.
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                server_time = parsedate_to_datetime(date).replace(tzinfo=UTC)  # HTTP dates are in UTC
                clock.learn(server_time, sent_s=context[_SENT_S], received_s=clock.monotonic())

    # The stubs say that no handler answers; the first answer to this event chooses.
    client.meta.events.register("choose-signer.s3", choose)  # type: ignore[arg-type]
    client.meta.events.register("response-received.s3", learn)
    if clock.now() < SOFTWARE_DATE:
        _leave_certificate_dates(client)


def _leave_certificate_dates(client: S3Client) -> None:
    """Let TLS prove the server's chain and name and leave the certificate's dates: in 1970 none is valid yet.

    Until the process ends, which a camera whose clock was set meanwhile need not mind.
    """
    try:
        context: ssl.SSLContext = client._endpoint.http_session._manager.connection_pool_kw["ssl_context"]  # type: ignore[attr-defined]
    except (AttributeError, KeyError):  # botocore hides it and may hide it elsewhere one day
        log.warning("the clock is wrong, and TLS will refuse every server until it is set")
        return
    context.verify_flags |= _NO_CHECK_TIME


class SkewWatch:
    """Whether the clock was put right since this was made: what was refused before it deserves another try."""

    def __init__(self, clock: ServerClock) -> None:
        self._clock = clock
        self._now, self._monotonic_s = clock.now(), clock.monotonic()

    def was_corrected(self) -> bool:
        """Return whether the clock has moved by more than a request may be off."""
        passed = timedelta(seconds=self._clock.monotonic() - self._monotonic_s)
        return abs(self._clock.now() - self._now - passed) > MAX_SKEW
