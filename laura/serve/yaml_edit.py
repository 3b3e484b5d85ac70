"""Changing single values of a YAML text, so that a person's comments and order stay."""

from __future__ import annotations

import copy
from typing import Any, TypeGuard

from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from laura.recipe.document import compose, yaml_text

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
    root = compose(text)
    if not isinstance(root, MappingNode):
        return text if value is None else f"{_ended(text)}{_dump(_nested(path, value), 0)}\n"
    parent: Node | None = root
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


def _put_entry(text: str, parent: MappingNode, key: str, value: Any) -> str:
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


def _is_block(node: Node | None) -> TypeGuard[CollectionNode]:
    """Whether a node is a mapping or list in lines, to which others can be added."""
    return isinstance(node, CollectionNode) and not node.flow_style and bool(node.value)


def _is_block_mapping(node: Node | None) -> TypeGuard[MappingNode]:
    return isinstance(node, MappingNode) and _is_block(node)


def _child(parent: MappingNode, key: str) -> Node | None:
    return next((value for one, value in parent.value if one.value == key), None)


def _end(node: Node) -> int:
    """Where a value's last character ends; a block's own mark is behind the comments after it."""
    if _is_block(node):
        last = node.value[-1]
        return _end(last[1] if isinstance(node, MappingNode) else last)
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
    return yaml_text(value).rstrip("\n").replace("\n", "\n" + " " * column)
