"""Changing a tenants file: one change at a time, whole or not at all.

Only the lines of a value change, so that a person's comments and order stay (`put`).
"""

from __future__ import annotations

import copy
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from laura.recipe.checks import validate
from laura.recipe.document import YamlDocument, compose, yaml_text
from laura.results.errors import RecipeError, StoreError, UsageError
from laura.results.inputs import MOST_TENANTS_BYTES
from laura.results.store import disk_faults, write_bytes
from laura.serve.auth import (
    MOST_KEYS,
    MOST_VALUES,
    TenantSettings,
    TenantsFile,
    check_tenants,
    hash_of_key,
    key_id,
    new_key,
    parse_tenants,
    read_tenants_text,
)

HEADER = """\
# Who may use `laura serve`. Change it with `laura tenants`, or here: `laura tenants list` tells
# every mistake. Only the SHA-256 of a key is kept; the key itself was shown once, when made.
#
#   tenants:
#     NAME:
#       keys: [SHA-256, ...]       # two at most, while clients change over from one to the other
#       adapters: [name, "pre*"]   # what it may use besides the base; "*" is every adapter
#       base: true                 # whether it may ask the base itself
#       requests_per_minute: 60    # left out, as the next two: no limit
#       tokens_per_minute: 100000  # of prompts and answers together
#       concurrent: 8              # requests at the same time
#       priority: 1.0              # share of the engine while several tenants wait
#       expires: 2027-01-31        # from this moment on (UTC) its keys are refused
#   admin:
#     keys: [SHA-256, ...]
"""
WAIT_SECONDS = 30.0
Place = tuple[str, ...]
Changes = list[tuple[Place, Any]]


def add(path: Path, name: str, settings: dict[str, Any]) -> str:
    """Add a tenant; make the file where there is none.

    Args:
        path: Tenants file.
        name: Its name.
        settings: Fields of `TenantSettings`, but no keys.

    Returns:
        Its key: this is the only time that it can be seen.

    Raises:
        UsageError: the name is taken, or a setting cannot be meant.
        StoreError: the file has faults, others may write it, or it cannot be written.
    """
    key = new_key()
    with _changing(path, new=True) as (file, changes):
        if name in file.tenants:
            instead = f"`laura tenants set {name}` changes it, `laura tenants key add {name}`"
            raise UsageError(f"there is a tenant {name} already; {instead} makes another key")
        checked, _ = validate(TenantSettings, settings)
        if checked is not None and checked.expired():
            raise UsageError(f"expires: {checked.expires:%Y-%m-%dT%H:%M:%SZ} has passed already")
        own = {"keys": [hash_of_key(key)], **_written(settings)}
        changes.append((("tenants", name), own))
    return key


def set_limits(path: Path, name: str, settings: dict[str, Any]) -> None:
    """Change settings of a tenant.

    Args:
        path: Tenants file.
        name: Its name.
        settings: Fields of `TenantSettings` that change; None brings a default back.

    Raises:
        UsageError: there is no such tenant, or a setting cannot be meant.
        StoreError: as `add`.
    """
    with _changing(path) as (file, changes):
        _tenant(file, name)
        changes += [(("tenants", name, field), one) for field, one in _written(settings).items()]


def remove(path: Path, name: str) -> None:
    """Take a tenant away, with its keys.

    Raises:
        UsageError: there is no such tenant.
        StoreError: as `add`.
    """
    with _changing(path) as (file, changes):
        _tenant(file, name)
        changes.append((("tenants", name), None))


def add_key(path: Path, name: str) -> str:
    """Make a tenant's second key, which is given back; see `add`.

    Raises:
        UsageError: there is no such tenant, or it has two keys.
        StoreError: as `add`.
    """
    with _changing(path) as (file, changes):
        keys, revoke = _tenant(file, name).keys, f"laura tenants key revoke {name}"
        return _add_key(changes, ("tenants", name, "keys"), keys, revoke)


def make_admin(path: Path) -> str:
    """Make an admin key, which is given back; make the file where there is none.

    Raises:
        UsageError: there are two.
        StoreError: as `add`.
    """
    with _changing(path, new=True) as (file, changes):
        return _add_key(changes, ("admin", "keys"), file.admin.keys, "laura tenants admin --revoke")


def revoke_key(path: Path, name: str | None, wanted: str) -> str:
    """Take a key away.

    Args:
        path: Tenants file.
        name: Whose key; None for an admin key.
        wanted: First digits of its SHA-256, at least 8, as `laura tenants list` shows them.

    Returns:
        The ID of the key.

    Raises:
        UsageError: there is no such tenant, or it has no such key.
        StoreError: as `add`.
    """
    with _changing(path) as (file, changes):
        keys = file.admin.keys if name is None else _tenant(file, name).keys
        gone = [key for key in keys if len(wanted) >= 8 and key.startswith(wanted.lower())]
        if len(gone) != 1:
            # What came is not told: it may be the key itself, given by mistake.
            there = ", ".join(map(key_id, keys)) or "none"
            whose = "the admin" if name is None else name
            raise UsageError(f"{whose} has no key of this ID; give one of: {there}")
        where = ("admin", "keys") if name is None else ("tenants", name, "keys")
        changes.append((where, [key for key in keys if key not in gone]))
    return key_id(gone[0])


def _add_key(changes: Changes, where: Place, keys: tuple[str, ...], revoke: str) -> str:
    if len(keys) >= MOST_KEYS:
        advice = f"revoke the one that is used no more: `{revoke} {key_id(keys[0])}`"
        raise UsageError(f"there are {len(keys)} keys already, the most there may be; {advice}")
    key = new_key()
    changes.append((where, [*keys, hash_of_key(key)]))
    return key


def _tenant(file: TenantsFile, name: str) -> TenantSettings:
    if name not in file.tenants:
        names = list(file.tenants)
        there = ", ".join(names[:10]) + (", ..." if names[10:] else "") or "none"
        raise UsageError(f"there is no tenant {name!r}; there are: {there}")
    return file.tenants[name]


@contextmanager
def _changing(path: Path, new: bool = False) -> Iterator[tuple[TenantsFile, Changes]]:
    """Read the file, let changes be listed, and write it, while no other command does."""
    changes: Changes = []
    # A link, such as one that a deployment places, stays a link.
    path = path.resolve()
    if not new:
        read_tenants_text(path)  # before a lock is made beside a file that is not there
    with _locked(path):
        made = path.exists() or not new
        text = read_tenants_text(path) if made else HEADER
        file = parse_tenants(text, str(path)) if made else TenantsFile()
        data = YamlDocument.parse(text, str(path), MOST_VALUES).data if made else {}
        yield file, changes
        content = _edited(text, data, changes, path).encode("utf-8")
        if not made:
            write_bytes(path, content, 0o600)
            return
        # A server that runs as another user must still be able to read it.
        facts = path.stat()
        mode = stat.S_IMODE(facts.st_mode)
        write_bytes(path, content, mode, (facts.st_uid, facts.st_gid))


def _edited(text: str, data: dict[str, Any], changes: Changes, path: Path) -> str:
    """The text with changes, which reads as the values with these changes and nothing else."""
    wanted = data
    for where, value in changes:
        wanted = with_value(wanted, where, value)
    _, faults = check_tenants(wanted)
    if faults:
        raise UsageError("; ".join(map(str, faults)))
    try:
        for where, value in changes:
            text, data = put(text, data, where, value), with_value(data, where, value)
        document = YamlDocument.parse(text, str(path), MOST_VALUES)
        if len(text.encode("utf-8")) <= MOST_TENANTS_BYTES and document.data == wanted:
            return text
    except (YAMLError, RecipeError):
        pass
    raise StoreError(
        f"{path} is written in a way that cannot be changed by command (anchors, aliases, or too "
        "long); change it by hand"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the right to change the file; another command waits."""
    from filelock import FileLock, Timeout

    with disk_faults(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Root's command must not lock out the server's user; to hold it needs no more than to
        # read it anyway.
        lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o666)
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            raise StoreError(f"another command has been changing {path} for long; wait") from None
    try:
        yield
    finally:
        lock.release()


def _written(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are written: an end as a moment in UTC, or as the day that it begins."""
    checked, _ = validate(TenantSettings, {"expires": settings.get("expires")})
    if checked is None or checked.expires is None:
        return settings
    moment = checked.expires.replace(microsecond=0)
    begins = moment == moment.replace(hour=0, minute=0, second=0)
    return {**settings, "expires": moment.date() if begins else moment}


def put(text: str, data: dict[str, Any], path: Place, value: Any) -> str:
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


def with_value(data: dict[str, Any], path: Place, value: Any) -> dict[str, Any]:
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


def _nested(path: Place, value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _mapping_at(data: Any, path: Place) -> dict[str, Any]:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _dump(value: Any, column: int) -> str:
    return yaml_text(value).rstrip("\n").replace("\n", "\n" + " " * column)
