"""Text that others wrote, made harmless: what a terminal would obey becomes visible.

A model may print escape sequences that move the cursor, carriage returns that
overwrite a verdict, or marks that turn the order of letters around. Shown as
`\\x1b` they are seen and do nothing.
"""

from __future__ import annotations

import re

# Control characters but tab and line feed; what has no width or turns the writing
# direction; line separators; tags; halves of surrogate pairs, which no encoding writes.
# The joiners U+200C and U+200D stay: Persian, Hindi and emoji are misspelt without them.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with every character that a terminal would obey written as its escape.

    Line feeds and tabs stay.

    Example:
        "a\\x1b[2Jb\\r" gives "a\\\\x1b[2Jb\\\\r".
    """
    return _OBEYED.sub(_escape, text)


def visible_line(text: str) -> str:
    """Like `visible`, and on one line: names must not begin a new one."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def visible_json(text: str) -> str:
    """The same JSON, with every such character as JSON's own escape.

    Args:
        text: JSON on one line. Such characters stand in its strings only.
    """
    return _OBEYED.sub(_json_escape, text)


def _escape(found: re.Match[str]) -> str:
    return "\\r" if found[0] == "\r" else found[0].encode("unicode_escape").decode("ascii")


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
