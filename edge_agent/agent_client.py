"""Talks to the agent that runs on this machine, for the command line."""

from __future__ import annotations

import hmac
import http.client
import json
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from curate.errors import AgentError, ConfigError
from edge_agent.config.agent import AgentConfig
from edge_agent.interfaces.tokens import load_tokens, prove_identity

_TIMEOUT_S: Final = 5.0
_MAX_BODY_BYTES: Final = 16 * 1024 * 1024
HINT: Final = "Start it with `gleaner-agent run --config …`."


class AgentNotRunningError(AgentError):
    """No agent answers on this machine."""


class AgentClient:
    """The API of the running agent."""

    def __init__(self, config: AgentConfig) -> None:
        """Look up where it listens.

        Raises:
            AgentNotRunningError: no agent has run with this state folder.
        """
        self._token_file = config.api.token_file
        self._is_known = False
        try:
            address = json.loads((config.state_dir / "api.json").read_bytes())
            self.url, self._instance = str(address["url"]), str(address.get("instance", ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise AgentNotRunningError(f"no agent has run with the state folder {config.state_dir}", hint=HINT) from exc
        # Never through a proxy from the environment: the agent is on this machine.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if config.api.tls_cert is not None:
            handlers.append(urllib.request.HTTPSHandler(context=_trusting(config.api.tls_cert)))
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str) -> Any:
        """Return the JSON at a path.

        Raises:
            AgentNotRunningError: it does not answer.
            AgentError: it refused; the message is its own.
        """
        return self._send(urllib.request.Request(self.url + path, headers=self._headers()))

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """Put a JSON document and return the answer.

        Raises:
            AgentNotRunningError: it does not answer.
            AgentError: it refused; the message is its own.
        """
        headers = self._headers() | {"Content-Type": "application/json"}
        data = json.dumps(body).encode()
        return self._send(urllib.request.Request(self.url + path, data=data, headers=headers, method="PUT"))

    def _send(self, request: urllib.request.Request) -> Any:
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as response:
                return json.loads(response.read(_MAX_BODY_BYTES))
        except urllib.error.HTTPError as exc:
            with exc:
                raise AgentError(_refusal(exc)) from exc
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise AgentNotRunningError(f"the agent does not answer at {self.url}: {exc}", hint=HINT) from exc

    def _headers(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        self._verify_identity()
        return {"Authorization": f"Bearer {load_tokens(self._token_file)[0]}"}

    def _verify_identity(self) -> None:
        """Make sure that it is the agent who listens, before it is told a token: an address file may have outlived its
        agent, and the port may be a stranger's now.

        Raises:
            AgentNotRunningError: somebody else answers, or nobody.
        """
        if self._is_known:
            return
        challenge = secrets.token_hex(16)
        try:
            proof = str(self._send(urllib.request.Request(f"{self.url}/livez?challenge={challenge}"))["proof"])
        except AgentNotRunningError:
            raise
        except (AgentError, KeyError, TypeError):
            proof = ""
        self._is_known = hmac.compare_digest(proof.encode(), prove_identity(self._instance, challenge).encode())
        if not self._is_known or not self._instance:
            raise AgentNotRunningError(f"what listens at {self.url} is not the agent that wrote api.json", hint=HINT)


def _trusting(certificate: Path) -> ssl.SSLContext:
    """Believe the agent's own certificate, whoever signed it and for whatever name: it is known by its file."""
    try:
        context = ssl.create_default_context(cafile=certificate)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"the certificate {certificate} cannot be used: {exc}") from exc
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


def _refusal(answer: urllib.error.HTTPError) -> str:
    """Return the agent's own words, when it had some."""
    try:
        return str(json.loads(answer.read(64 * 1024))["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"the agent answered {answer.code} {answer.reason}"
