"""Changing tenants and keys in the database: one change at a time, whole or not at all.

Gates that run look twice a second whether something was changed (`read_tenants_of`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from laura.recipe.checks import validate
from laura.results.errors import UsageError
from laura.serve.accounts import Account
from laura.serve.auth import (
    MOST_KEYS,
    TenantSettings,
    TenantsFile,
    check_tenants,
    hash_of_key,
    key_id,
    new_key,
)
from laura.serve.database import KEYS, REVISION, TENANTS, Database

Place = tuple[str, ...]
Changes = list[tuple[Place, Any]]


def stored_tenants(database: Database) -> tuple[TenantsFile, int]:
    """All tenants and keys, and the number of the last change.

    Raises:
        StoreError: as `Database.transaction`.
    """
    with database.transaction() as connection:
        revision = connection.execute(select(REVISION.c.number)).scalar_one()
        return TenantsFile.model_validate(_data(connection)), revision


def add(database: Database, name: str, settings: dict[str, Any]) -> str:
    """Add a tenant.

    Args:
        database: Where tenants are.
        name: Its name.
        settings: Fields of `TenantSettings`, but no keys.

    Returns:
        Its key: this is the only time that it can be seen.

    Raises:
        UsageError: the name is taken, or a setting cannot be meant.
        StoreError: as `Database.transaction`.
    """
    key = new_key()
    with _changing(database) as (file, changes):
        if name in file.tenants:
            instead = f"`laura tenants set {name}` changes it, `laura tenants key add {name}`"
            raise UsageError(f"there is a tenant {name} already; {instead} makes another key")
        checked, _ = validate(TenantSettings, settings)
        if checked is not None and checked.expired():
            raise UsageError(f"expires: {checked.expires:%Y-%m-%dT%H:%M:%SZ} has passed already")
        changes.append((("tenants", name), {"keys": [hash_of_key(key)], **settings}))
    return key


def set_limits(database: Database, name: str, settings: dict[str, Any]) -> TenantSettings:
    """Change settings of a tenant; what it used of its limits stays used.

    Args:
        database: Where tenants are.
        name: Its name.
        settings: Fields of `TenantSettings` that change; None brings a default back.

    Returns:
        All that is said of it now.

    Raises:
        UsageError: there is no such tenant, or a setting cannot be meant.
        StoreError: as `Database.transaction`.
    """
    with _changing(database) as (file, changes):
        _tenant(file, name)
        changes += [(("tenants", name, field), one) for field, one in settings.items()]
    return _tenant(stored_tenants(database)[0], name)


def remove(database: Database, name: str) -> None:
    """Take a tenant away, with its keys and what it used.

    Raises:
        UsageError: there is no such tenant.
        StoreError: as `Database.transaction`.
    """
    with _changing(database) as (file, changes):
        _tenant(file, name)
        changes.append((("tenants", name), None))


def replace(database: Database, file: TenantsFile) -> None:
    """Let there be the tenants and keys of a file and no others; what they used stays used.

    Raises:
        StoreError: as `Database.transaction`.
    """
    with database.transaction(durable=True) as connection:
        connection.execute(_NEXT)
        _write(database, connection, file)


def add_key(database: Database, name: str) -> str:
    """Make a tenant's second key, which is given back; see `add`.

    Raises:
        UsageError: there is no such tenant, or it has two keys.
        StoreError: as `Database.transaction`.
    """
    with _changing(database) as (file, changes):
        keys, revoke = _tenant(file, name).keys, f"laura tenants key revoke {name}"
        return _add_key(changes, ("tenants", name, "keys"), keys, revoke)


def make_admin(database: Database) -> str:
    """Make an admin key, which is given back.

    Raises:
        UsageError: there are two.
        StoreError: as `Database.transaction`.
    """
    with _changing(database) as (file, changes):
        return _add_key(changes, ("admin", "keys"), file.admin.keys, "laura tenants admin --revoke")


def revoke_key(database: Database, name: str | None, wanted: str) -> str:
    """Take a key away.

    Args:
        database: Where tenants are.
        name: Whose key; None for an admin key.
        wanted: First digits of its SHA-256, at least 8, as `laura tenants list` shows them.

    Returns:
        The ID of the key.

    Raises:
        UsageError: there is no such tenant, or it has no such key.
        StoreError: as `Database.transaction`.
    """
    with _changing(database) as (file, changes):
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


# Also the lock that another change waits for.
_NEXT = update(REVISION).values(number=REVISION.c.number + 1)


@contextmanager
def _changing(database: Database) -> Iterator[tuple[TenantsFile, Changes]]:
    """Read all, let changes be listed, and write them, while nobody else does."""
    changes: Changes = []
    with database.transaction(durable=True) as connection:
        connection.execute(_NEXT)
        data = _data(connection)
        yield TenantsFile.model_validate(data), changes
        for where, value in changes:
            data = _with_value(data, where, value)
        file, faults = check_tenants(data)
        if faults or file is None:
            raise UsageError("; ".join(map(str, faults)))
        _write(database, connection, file)


def _data(connection: Connection) -> dict[str, Any]:
    """All that is stored, as a tenants file would say it."""
    rows = connection.execute(select(TENANTS.c.name, TENANTS.c.settings)).all()
    tenants = {name: {**settings, "keys": []} for name, settings in sorted(rows)}
    admin: dict[str, Any] = {"keys": []}
    for sha256, tenant in connection.execute(
        select(KEYS.c.sha256, KEYS.c.tenant).order_by(KEYS.c.place)
    ):
        (admin if tenant is None else tenants[tenant])["keys"].append(sha256)
    return {"tenants": tenants, "admin": admin}


def _write(database: Database, connection: Connection, file: TenantsFile) -> None:
    """Store all; accounts of tenants that stay go on."""
    now = database.now.label("now")
    rows = connection.execute(select(TENANTS, now).with_for_update(), database.ticks).all()
    there = {row.name: row for row in rows}
    at = connection.execute(select(now), database.ticks).scalar_one()
    connection.execute(delete(KEYS))
    for name in there.keys() - file.tenants.keys():
        connection.execute(delete(TENANTS).where(TENANTS.c.name == name))
    for name, settings in file.tenants.items():
        account = Account.of(there[name]) if name in there else Account({}, at)
        account.change(settings)
        row = {"settings": account.settings, **account.columns()}
        if name not in there:
            connection.execute(insert(TENANTS), {"name": name, **row})
        elif account.settings != there[name].settings:
            connection.execute(update(TENANTS).where(TENANTS.c.name == name), row)
    holders = [(None, file.admin.keys), *((name, one.keys) for name, one in file.tenants.items())]
    keys = [
        {"sha256": key, "tenant": name, "place": place}
        for name, held in holders
        for place, key in enumerate(held)
    ]
    if keys:
        connection.execute(insert(KEYS), keys)


def _with_value(data: dict[str, Any], path: Place, value: Any) -> dict[str, Any]:
    """A copy of nested mappings with another value in one place; None takes it away."""
    new = copy.deepcopy(data)
    place = new
    for key in path[:-1]:
        place = place[key]
    if value is None:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = value
    return new
