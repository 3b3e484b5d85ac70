"""Changes of tenants and keys: nothing lost, nothing half, also by two commands at once."""

from __future__ import annotations

import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from laura.results.errors import UsageError
from laura.serve.auth import Tenants, hash_of_key
from laura.serve.database import Database
from laura.serve.tenant_changes import (
    add,
    add_key,
    make_admin,
    remove,
    revoke_key,
    set_limits,
    stored_tenants,
)
from tests.serve.test_tenants import of_key

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """A file with two tenants."""
    made = Database(f"sqlite:///{tmp_path / 'laura.db'}")
    add(made, "acme", {"adapters": ["maths"], "requests_per_minute": 60})
    add(made, "beta", {"base": False})
    return made


def known(database: Database) -> Tenants:
    return Tenants.of(stored_tenants(database)[0])


def test_from_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "laura.db"
    database = Database(f"sqlite:///{path}")
    settings = {
        "adapters": ["support-*", "1e5"],
        "base": False,
        "tokens_per_minute": 100,
        "priority": 2.0,
        "expires": "2030-01-31T12:00+02:00",
    }
    key = add(database, "acme", settings)
    other = add(database, "1e5", {})
    admin = make_admin(database)
    tenants = known(database)
    database.close()
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert not any(one.encode() in file.read_bytes() for one in (key, other, admin))
    acme = of_key(tenants, key)
    assert acme is not None and (acme.name, acme.adapters) == ("acme", ("support-*", "1e5"))
    assert (acme.base, acme.tokens_per_minute, acme.priority) == (False, 100, 2.0)
    assert acme.expires == datetime(2030, 1, 31, 10, tzinfo=UTC)
    assert of_key(tenants, other) == tenants.get("1e5")
    assert tenants.is_admin(admin) and of_key(tenants, admin) is None
    assert not tenants.is_admin(key)


def test_what_is_not_named_stays(database: Database) -> None:
    before = known(database)
    set_limits(database, "acme", {"requests_per_minute": 90, "expires": "2030-01-31"})
    acme, beta = known(database).get("acme"), known(database).get("beta")
    assert acme is not None and (acme.requests_per_minute, acme.adapters) == (90, ("maths",))
    assert acme.expires == datetime(2030, 1, 31, tzinfo=UTC) and beta == before.get("beta")
    set_limits(database, "acme", {"requests_per_minute": None, "expires": None})
    acme = known(database).get("acme")
    assert acme is not None and (acme.requests_per_minute, acme.expires) == (None, None)
    remove(database, "acme")
    assert known(database).names == ("beta",)


def test_keys_change_over(database: Database) -> None:
    one = add_key(database, "acme")
    with pytest.raises(UsageError, match=r"2 keys already.*laura tenants key revoke acme [0-9a-f]"):
        add_key(database, "acme")
    assert revoke_key(database, "acme", hash_of_key(one)[:8].upper()) == hash_of_key(one)[:12]
    assert of_key(known(database), one) is None
    two = add_key(database, "acme")
    assert of_key(known(database), two) == known(database).get("acme")
    assert known(database).get("acme").keys[1] == hash_of_key(two)  # type: ignore[union-attr]
    admins = [make_admin(database), make_admin(database)]
    with pytest.raises(UsageError, match=r"2 keys already.*laura tenants admin --revoke"):
        make_admin(database)
    revoke_key(database, None, hash_of_key(admins[0]))
    assert [known(database).is_admin(one) for one in admins] == [False, True]


def test_what_cannot_be_meant_changes_nothing(database: Database) -> None:
    key = add_key(database, "acme")
    before = stored_tenants(database)
    changes: list[tuple[Any, str]] = [
        (lambda: add(database, "acme", {}), "there is a tenant acme already.*set acme"),
        (lambda: add(database, "ACME", {}), "differs from acme by case"),
        (lambda: add(database, "../x", {}), "a name must be 1 to 128"),
        (lambda: add(database, "x", {"concurrent": -1, "priority": float("nan")}), "-1;.*finite"),
        (lambda: add(database, "x", {"expires": "2020-01-01"}), "has passed already"),
        (lambda: add(database, "x", {"expires": "soon"}), "must be a day"),
        (lambda: set_limits(database, "acme", {"concurrent": 0}), "greater than or equal to 1"),
        (lambda: set_limits(database, "nobody", {"concurrent": 1}), "there are: acme, beta"),
        (lambda: remove(database, "Acme"), "there is no tenant 'Acme'"),
        (lambda: add_key(database, "nobody"), "there is no tenant"),
        (lambda: revoke_key(database, "acme", hash_of_key(key)[:7]), "no key of this ID; give one"),
        (lambda: revoke_key(database, "beta", hash_of_key(key)), "beta has no key"),
        (lambda: revoke_key(database, None, hash_of_key(key)), "give one of: none"),
    ]
    for change, told in changes:
        with pytest.raises(UsageError, match=told) as refused:
            change()
        assert "\n" not in str(refused.value)
        assert stored_tenants(database) == before
    with pytest.raises(UsageError) as refused:
        revoke_key(database, "acme", key)
    assert key not in str(refused.value)


def test_two_commands_at_once_lose_nothing(database: Database) -> None:
    code = (
        "import sys\n"
        "from laura.serve.database import Database\n"
        "from laura.serve.tenant_changes import add, remove\n"
        "database = Database(sys.argv[1])\n"
        "for number in range(5):\n"
        "    add(database, f'{sys.argv[2]}{number}', {'concurrent': 1})\n"
        "remove(database, f'{sys.argv[2]}0')\n"
    )
    commands = [
        subprocess.Popen([sys.executable, "-c", code, database.name, name], cwd=ROOT)
        for name in ("x", "y", "z")
    ]
    assert [command.wait() for command in commands] == [0, 0, 0]
    wanted = {f"{name}{number}" for name in "xyz" for number in range(1, 5)}
    file, revision = stored_tenants(database)
    assert set(file.tenants) == {"acme", "beta", *wanted} and revision == 2 + 3 * 6
