"""The page's files: types, validators, a policy that its own files keep, nothing else served."""

from __future__ import annotations

import re

import pytest

from laura.serve.page_files import PAGE, page_response


def test_the_index_with_its_type_and_policy() -> None:
    found = page_response()
    assert found is not None and found.status_code == 200
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert found.body == (PAGE / "index.html").read_bytes()
    policy = dict(part.strip().split(" ", 1) for part in found.headers[POLICY].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in found.headers[POLICY]
    assert found.headers["x-content-type-options"] == "nosniff"


POLICY = "content-security-policy"


def test_what_a_client_has_already_is_not_sent_again() -> None:
    found = page_response("page.js")
    assert found is not None and found.headers["content-type"].startswith("text/javascript")
    for header in (found.headers["etag"], f'"x", W/{found.headers["etag"]}', "*"):
        again = page_response("page.js", header)
        assert again is not None and (again.status_code, again.body) == (304, b"")
        assert again.headers["etag"] == found.headers["etag"]
    for header in ("", '"other"', None):
        again = page_response("page.js", header)
        assert again is not None and (again.status_code, again.body) == (200, found.body)
    other = page_response("chat.js", found.headers["etag"])
    assert other is not None and other.status_code == 200


@pytest.mark.parametrize(
    "name", ["", "nothing.js", "../page_files.py", "/etc/passwd", "page.js/", "PAGE.JS", ".."]
)
def test_only_its_own_files_are_served(name: str) -> None:
    assert page_response(name) is None


def test_the_page_keeps_its_policy() -> None:
    """No code or style in the markup, no way from a text to HTML, no address elsewhere."""
    markup = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script>", markup)
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), path.name
