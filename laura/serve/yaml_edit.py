"""Changing single values of a YAML text, so that a person's comments and order stay."""

from __future__ import annotations

import copy
from typing import Any, TypeGuard

import yaml


class _Dumper(yaml.SafeDumper):
    """Quotes every text that begins with no letter: readers differ in what is a number."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if text[:1].isalpha() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)
Path = tuple[str, ...]


def put(text: str, data: dict[str, Any], path: Path, value: Any) -> str:
    """The text with another value in one place.

    Only the lines of that value change. Where mappings are written in braces, the outermost
    is written anew in lines, without the comments inside.

    Args:
        text: A YAML mapping, or nothing but comments.
        data: What it reads as.
        path: Keys from the outside in; mappings that are missing are made.
        value: Mappings, lists, texts, numbers, dates. None takes the place away.

    Returns:
        YAML, provided that the place is written in the usual way. Anchors, aliases and
        complex keys are not understood: read what comes out, and compare.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return text if value is None else f"{_ended(text)}{_dump(_nested(path, value), 0)}\n"
    parent: yaml.Node | None = root
    depth = 0
    while depth < len(path) - 1 and _is_block_mapping(parent):
        parent, depth = _child(parent, path[depth]), depth + 1
    above, rest = path[:depth], path[depth:]
    if not _is_block_mapping(parent):
        # Nothing is there, or it is in braces: it is written anew, in its own parent.
        new = with_value(_mapping_at(data, above), rest, value)
        return put(text, data, above, new) if above else f"{_dump(new, 0)}\n"
    alone = [key.value for key, _ in parent.value] == [path[-1]]
    if value is None and alone and above:
        return put(text, data, above, {})
    return _put_entry(text, parent, path[-1], value)


def with_value(data: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of nested mappings with another value in one place; see `put`."""
    new = copy.deepcopy(data)
    place = new
    for key in path[:-1]:
        if not isinstance(place.get(key), dict):
            place[key] = {}
        place = place[key]
    if value is None:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = value
    return new


def _put_entry(text: str, parent: yaml.MappingNode, key: str, value: Any) -> str:
    """Replace, add or take away an entry of a mapping that stands in lines."""
    column = parent.value[0][0].start_mark.column
    entry = None if value is None else _dump({key: value}, column)
    for key_node, value_node in parent.value:
        if key_node.value != key:
            continue
        start, end = key_node.start_mark.index, _end(value_node)
        line_end = _line_end(text, end)
        if entry is None:
            return text[: start - column] + text[line_end:]
        if _is_block(value_node):
            # A remark behind it is about its last line, which goes.
            return f"{text[:start]}{entry}\n{text[line_end:]}"
        return text[:start] + entry + text[end:]
    if entry is None:
        return text
    end = _line_end(text, _end(parent))
    return f"{_ended(text[:end])}{' ' * column}{entry}\n{text[end:]}"


def _is_block(node: yaml.Node | None) -> TypeGuard[yaml.CollectionNode]:
    """Whether a node is a mapping or list in lines, to which others can be added."""
    return isinstance(node, yaml.CollectionNode) and not node.flow_style and bool(node.value)


def _is_block_mapping(node: yaml.Node | None) -> TypeGuard[yaml.MappingNode]:
    return isinstance(node, yaml.MappingNode) and _is_block(node)


def _child(parent: yaml.MappingNode, key: str) -> yaml.Node | None:
    return next((value for one, value in parent.value if one.value == key), None)


def _end(node: yaml.Node) -> int:
    """Where a value's last character ends; a block's own mark is behind the comments after it."""
    if _is_block(node):
        last = node.value[-1]
        return _end(last[1] if isinstance(node, yaml.MappingNode) else last)
    return int(node.end_mark.index)


def _line_end(text: str, index: int) -> int:
    """Where the line of a character ends, its line feed included."""
    return text.find("\n", index) + 1 or len(text)


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _nested(path: Path, value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _mapping_at(data: Any, path: Path) -> dict[str, Any]:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _dump(value: Any, column: int) -> str:
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return text.rstrip("\n").replace("\n", "\n" + " " * column)
