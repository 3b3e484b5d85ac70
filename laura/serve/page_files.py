"""The page's files as a server gives them: types, validators, and headers that confine the page.

The page runs its own modules and nothing else, talks to its own server alone, and may not be
framed. Names come from clients: only those of the files that are there have an answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parent / "page"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Kept by the browser, but asked about each time: a new version is seen at once.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class FileAnswer:
    """What is sent for a file: HTTP status, headers (names in lower case) and body."""

    status: int
    headers: dict[str, str]
    body: bytes


def answer(name: str = INDEX, if_none_match: str | None = None) -> FileAnswer | None:
    """The answer to a GET of one of the page's files.

    Args:
        name: `index.html` for `/`, else what follows `/static/`.
        if_none_match: The request's header of that name.

    Returns:
        200 with the file, 304 without a body where the client has it already, None where
        there is no such file.
    """
    found = _files().get(name)
    if found is None:
        return None
    kind, tag, body = found
    headers = {**HEADERS, "etag": tag}
    known = {one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")}
    if known & {tag, "*"}:
        return FileAnswer(304, headers, b"")
    return FileAnswer(200, {**headers, "content-type": kind}, body)


def names() -> list[str]:
    """Names of the files there are."""
    return sorted(_files())


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
