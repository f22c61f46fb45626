"""The door before the HTTP API: a token in a header, or a cookie that the page was given for one."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_agent.interfaces.tokens import BEARER, FAILURE_WINDOW_S, TokenGuard, make_session

COOKIE: Final = "gleaner"
_COOKIE_AGE_S: Final = 30 * 24 * 3600
OPEN_PATHS: Final = frozenset({"/livez", "/healthz"})
"""For supervisors, which have no token; they learn no more than fine or not."""
TRUSTED: Final = "gleaner.trusted"
"""Set in a request's scope when it may be told everything."""

_LOGIN: Final = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Gleaner camera</title>
<h1>This camera asks for a token</h1>
<p>Open it as <code>/?token=…</code> with a token from the camera's token file.</p></html>"""


class Doorkeeper:
    """ASGI middleware. Without a guard everybody is let in: then only this machine can reach it."""

    def __init__(self, app: ASGIApp, *, guard: TokenGuard | None, secure: bool) -> None:
        """`secure`: cookies travel over TLS only."""
        self._app = app
        self._guard = guard
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[TRUSTED], answer = _decide(Request(scope), self._guard, secure=self._secure)
        await (answer or self._app)(scope, receive, send)


def _decide(request: Request, guard: TokenGuard | None, *, secure: bool) -> tuple[bool, Response | None]:
    """Return whether the request is trusted, and the answer when it goes no further."""
    if request.method not in {"GET", "HEAD"} and request.headers.get("sec-fetch-site") == "cross-site":
        return False, JSONResponse({"error": "a page from elsewhere may not change anything here"}, status_code=403)
    if guard is None:
        return True, None
    client = request.client.host if request.client else ""
    if request.url.path == "/" and "token" in request.query_params:
        return False, _log_in(request.query_params["token"], guard, client, secure=secure)
    if _is_admitted(request, guard, client):
        return True, None
    if request.url.path in OPEN_PATHS:
        return False, None
    return False, _turn_away(request, blocked=guard.is_blocked(client))


def _is_admitted(request: Request, guard: TokenGuard, client: str) -> bool:
    given = request.headers.get("authorization", "")
    if given.lower().startswith(BEARER):
        return guard.admits(given[len(BEARER) :].strip(), client=client)
    cookie = _read_cookie(request.headers.get("cookie", ""))
    return cookie is not None and guard.admits_session(cookie)


def _read_cookie(header: str) -> str | None:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return found.value if found else None


def _log_in(token: str, guard: TokenGuard, client: str, *, secure: bool) -> Response:
    """Give the page a cookie, and take the token out of the address."""
    if not guard.admits(token, client=client):
        return HTMLResponse(_LOGIN, status_code=429 if guard.is_blocked(client) else 401)
    # Not a redirect: after a click in a mail, browsers send a strict cookie only with what our own page asks for.
    answer = HTMLResponse('<!doctype html><meta http-equiv="refresh" content="0;url=/">')
    answer.set_cookie(
        COOKIE, make_session(token), max_age=_COOKIE_AGE_S, httponly=True, samesite="strict", secure=secure
    )
    return answer


def _turn_away(request: Request, *, blocked: bool) -> Response:
    if blocked:
        headers = {"Retry-After": str(int(FAILURE_WINDOW_S))}
        return JSONResponse({"error": "too many wrong tokens"}, status_code=429, headers=headers)
    headers = {"WWW-Authenticate": "Bearer"}
    if request.url.path == "/":
        return HTMLResponse(_LOGIN, status_code=401, headers=headers)
    return JSONResponse(
        {"error": "a token is needed", "hint": "Send the header `Authorization: Bearer <token>`."},
        status_code=401,
        headers=headers,
    )
