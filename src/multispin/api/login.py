"""The way in for browsers, where the server asks for access tokens: a form, and a cookie.

The cookie is the token. No script can read it, and no other site's page or link makes a browser
send it. Whether the token is good is seen where it is used; if not, the form comes again.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from multispin.api.body import read_body
from multispin.core.tenant import TOKEN_PREFIX

LOGIN_PATH, LOGOUT_PATH = "/login", "/logout"
DASHBOARD_PATH = "/"
COOKIE = "multispin_token"
REFUSED = f"{LOGIN_PATH}?refused"  # the page says so
_TOKEN = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_-]{1,200}")
SEE_OTHER = 303
MAX_FORM_BYTES = 4096  # anybody may send one


def cookie_token(scope: Scope) -> bytes | None:
    """Of a browser that signed in, unless the request names a token itself."""
    headers = Headers(scope=scope)
    if "authorization" in headers:
        return None
    # Not by Python's http.cookies: before 3.11.10 that takes minutes for a cookie of backslashes,
    # and anybody may send one.
    cookies = (cookie.partition("=") for cookie in headers.get("cookie", "").split(";"))
    values = (value.strip() for name, _, value in cookies if name.strip() == COOKIE)
    token = next(values, "")
    return token.encode() if token else None


def to_login(scope: Scope) -> Response | None:
    """Where a person without a good token is sent; None where it is no person."""
    wants_page = "text/html" in Headers(scope=scope).get("accept", "")
    if scope["type"] != "http" or scope["path"] != DASHBOARD_PATH or not wants_page:
        return None
    is_refused = cookie_token(scope) is not None
    return RedirectResponse(REFUSED if is_refused else LOGIN_PATH, SEE_OTHER)


async def log_in(request: Request) -> Response:
    """The form was sent."""
    fields = parse_qs((await read_body(request.receive, MAX_FORM_BYTES)).decode("ascii", "replace"))
    token = fields.get("token", [""])[0].strip()
    if not _TOKEN.fullmatch(token):
        return RedirectResponse(REFUSED, SEE_OTHER)
    answer = RedirectResponse(DASHBOARD_PATH, SEE_OTHER)
    is_encrypted = request.url.scheme == "https"
    answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=is_encrypted)
    return answer


async def log_out(request: Request) -> Response:
    answer = RedirectResponse(LOGIN_PATH, SEE_OTHER)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
