"""The page at `/`: what the camera sees and says, for whoever stands before it with a telephone."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

_FILE: Final = "page.html"


@dataclass(frozen=True, slots=True)
class Page:
    """One file without anything from elsewhere, and the policy that makes sure of it."""

    content: bytes
    policy: str

    async def answer(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        """Answer `GET /`."""
        return Response(self.content, media_type="text/html", headers={"Content-Security-Policy": self.policy})


def load_page() -> Page:
    """Read the page; its own script and style may run, by their digests, and no other."""
    content = files(__package__).joinpath(_FILE).read_bytes()
    policy = [
        "default-src 'none'",
        f"script-src {_digest_of('script', content)}",
        f"style-src {_digest_of('style', content)}",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return Page(content, "; ".join(policy))


def _digest_of(tag: str, content: bytes) -> str:
    (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(block).digest()).decode()}'"
