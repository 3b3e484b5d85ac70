"""The page's files as the server gives them: types, validators, and headers that confine the page.

The page runs its own modules and nothing else, talks to its own server alone, and may not be
framed. Names come from clients: only those of the files that are there have an answer.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from starlette.responses import Response

PAGE = Path(__file__).parent / "page"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept by the browser, but asked about each time: a new version is seen at once.
    "cache-control": "no-cache",
}


def page_response(name: str = INDEX, if_none_match: str | None = None) -> Response | None:
    """The answer to a GET of one of the page's files.

    Args:
        name: `index.html` for `/`, else what follows `/static/`.
        if_none_match: The request's header of that name.

    Returns:
        200 with the file, 304 without a body where the client has it already, None where
        there is no such file.
    """
    if name not in _files():
        return None
    kind, tag, body = _files()[name]
    headers = {**HEADERS, "etag": tag}
    known = {one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")}
    if known & {tag, "*"}:
        return Response(b"", 304, headers)
    return Response(body, 200, {**headers, "content-type": kind})


@cache
def _files() -> dict[str, tuple[str, str, bytes]]:
    """Type, entity tag and content by name; read once while the server lives."""
    found = {}
    for path in PAGE.iterdir():
        if path.suffix in TYPES:
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[path.name] = (TYPES[path.suffix], tag, body)
    return found
