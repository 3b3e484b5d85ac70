"""Changes of a tenants file: nothing lost, nobody else's, also by two commands at once."""

from __future__ import annotations

import io
import os
import re
import signal
import stat
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from laura.results.errors import StoreError, UsageError
from laura.serve.auth import Tenants, hash_of_key
from laura.serve.tenant_changes import (
    add,
    add_key,
    make_admin,
    put,
    remove,
    revoke_key,
    set_limits,
    with_value,
)
from tests.serve.test_tenants import of_key

ROOT = str(Path(__file__).parents[2])
BY_HAND = """\
# Our customers, ask Ann before you change them.
tenants:
  # Paid until summer.
  acme:
    adapters: [maths]   # not code!
    requests_per_minute: 60
  beta: {base: false}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tenants file that a person wrote."""
    path = tmp_path / "tenants.yaml"
    path.write_text(BY_HAND)
    path.chmod(0o600)
    return path


def test_from_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tenants.yaml"
    settings = {
        "adapters": ["support-*", "1e5"],
        "base": False,
        "tokens_per_minute": 100,
        "priority": 2.0,
        "expires": "2030-01-31T12:00+02:00",
    }
    key = add(path, "acme", settings)
    other = add(path, "1e5", {})
    admin = make_admin(path)
    text = path.read_text()
    assert text.startswith("# Who may use `laura serve`")
    assert not any(one in text for one in (key, other, admin))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tenants = Tenants.read(path)
    acme = of_key(tenants, key)
    assert acme is not None and (acme.name, acme.adapters) == ("acme", ("support-*", "1e5"))
    assert (acme.base, acme.tokens_per_minute, acme.priority) == (False, 100, 2.0)
    assert acme.expires == datetime(2030, 1, 31, 10, tzinfo=UTC)
    assert of_key(tenants, other) == tenants.get("1e5")
    assert tenants.is_admin(admin) and of_key(tenants, admin) is None
    assert not tenants.is_admin(key)


def test_comments_and_others_stay(file: Path) -> None:
    key = add(file, "gamma", {"concurrent": 3})
    set_limits(file, "acme", {"requests_per_minute": 90, "expires": "2030-01-31"})
    set_limits(file, "beta", {"priority": 3.0})
    assert re.sub("[0-9a-f]{64}", "HASH", file.read_text().replace('"', "")) == (
        BY_HAND.replace("60\n", "90\n    expires: 2030-01-31\n").replace(
            "  beta: {base: false}\n",
            "  beta:\n    base: false\n    priority: 3.0\n"
            "  gamma:\n    keys:\n    - HASH\n    concurrent: 3\n",
        )
    )
    assert hash_of_key(key) in file.read_text()
    set_limits(file, "acme", {"requests_per_minute": 60, "expires": None})
    remove(file, "gamma")
    assert file.read_text() == BY_HAND.replace(
        "  beta: {base: false}\n", "  beta:\n    base: false\n    priority: 3.0\n"
    )


def test_keys_change_over(file: Path) -> None:
    one, two = add_key(file, "acme"), add_key(file, "acme")
    with pytest.raises(UsageError, match=r"2 keys already.*laura tenants key revoke acme [0-9a-f]"):
        add_key(file, "acme")
    assert revoke_key(file, "acme", hash_of_key(one)[:8].upper()) == hash_of_key(one)[:12]
    tenants = Tenants.read(file)
    assert of_key(tenants, one) is None and of_key(tenants, two) == tenants.get("acme")
    revoke_key(file, "acme", hash_of_key(two))
    assert of_key(Tenants.read(file), two) is None
    assert "not code!" in file.read_text()


def test_what_cannot_be_meant_changes_nothing(file: Path) -> None:
    key = add_key(file, "acme")
    before = file.read_bytes()
    for change, told in (
        (lambda: add(file, "acme", {}), "there is a tenant acme already.*set acme"),
        (lambda: add(file, "ACME", {}), "differs from acme by case"),
        (lambda: add(file, "../x", {}), "a name must be 1 to 128"),
        (lambda: add(file, "x", {"concurrent": -1, "priority": float("nan")}), "-1;.*finite"),
        (lambda: add(file, "x", {"expires": "2020-01-01"}), "has passed already"),
        (lambda: add(file, "x", {"expires": "soon"}), "must be a day"),
        (lambda: set_limits(file, "acme", {"concurrent": 0}), "greater than or equal to 1"),
        (lambda: set_limits(file, "nobody", {"concurrent": 1}), "there are: acme, beta"),
        (lambda: remove(file, "Acme"), "there is no tenant 'Acme'"),
        (lambda: add_key(file, "nobody"), "there is no tenant"),
        (lambda: revoke_key(file, "acme", hash_of_key(key)[:7]), "no key of this ID; give one of"),
        (lambda: revoke_key(file, "beta", hash_of_key(key)), "give one of: none"),
        (lambda: revoke_key(file, None, hash_of_key(key)), "the admin has no key"),
    ):
        with pytest.raises(UsageError, match=told) as refused:
            change()
        assert "\n" not in str(refused.value)
        assert file.read_bytes() == before
    with pytest.raises(UsageError) as refused:
        revoke_key(file, "acme", key)
    assert key not in str(refused.value)


def test_a_file_with_faults_is_not_touched(file: Path) -> None:
    file.write_text(BY_HAND + "  gamma: {concurrent: -1}\n")
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"tenants\.gamma\.concurrent \(line 8\)"):
        remove(file, "acme")
    file.chmod(0o666)
    with pytest.raises(StoreError, match="written by others"):
        remove(file, "acme")
    assert file.read_bytes() == before


def test_anchors_are_left_to_their_author(file: Path) -> None:
    file.write_text(
        "tenants:\n  a: &usual\n    priority: 2\n    adapters: &some [x]\n  b:\n    <<: *usual\n"
        "    concurrent: 1\n  c: *usual\n  d: {adapters: *some}\n"
    )
    set_limits(file, "b", {"concurrent": 2})
    assert "<<: *usual" in file.read_text() and Tenants.read(file).get("b").priority == 2  # type: ignore[union-attr]
    before = file.read_bytes()
    for change in (
        lambda: set_limits(file, "a", {"priority": 3.0}),
        lambda: set_limits(file, "c", {"priority": 3.0}),
        lambda: set_limits(file, "a", {"adapters": ["y"], "concurrent": 3}),
        lambda: remove(file, "a"),
    ):
        with pytest.raises(StoreError, match=r"anchors, aliases.*by hand"):
            change()
    assert file.read_bytes() == before


def test_mode_and_link_stay(file: Path, tmp_path: Path) -> None:
    file.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    remove(link, "beta")
    assert link.is_symlink() and "beta" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays(file: Path) -> None:
    os.chown(file, 12345, 23456)
    remove(file, "beta")
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 23456)


def test_two_commands_at_once_lose_nothing(file: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from laura.serve.tenant_changes import add, remove\n"
        "for number in range(5):\n"
        "    add(pathlib.Path(sys.argv[1]), f'{sys.argv[2]}{number}', {'concurrent': 1})\n"
        "remove(pathlib.Path(sys.argv[1]), f'{sys.argv[2]}0')\n"
    )
    commands = [
        subprocess.Popen([sys.executable, "-c", code, str(file), name], cwd=ROOT)
        for name in ("x", "y", "z")
    ]
    assert [command.wait() for command in commands] == [0, 0, 0]
    names = Tenants.read(file).names
    wanted = {f"{name}{number}" for name in "xyz" for number in range(1, 5)}
    assert set(names) == {"acme", "beta", *wanted} and len(names) == 14
    assert all(comment in file.read_text() for comment in ("ask Ann", "Paid until", "not code!"))


def test_killed_while_writing_the_old_file_stands(file: Path) -> None:
    code = (
        "import os, signal, sys, pathlib\n"
        "from laura.serve.tenant_changes import remove\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "remove(pathlib.Path(sys.argv[1]), 'acme')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(file)], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert file.read_text() == BY_HAND
    remove(file, "acme")


TEXT = """\
# Ours, do not lose.
tenants:
  # The first one.
  acme:   # since May
    keys:
      - abc  # the old one
    priority: 2  # agreed with Bob

  beta: {adapters: [a, b], priority: 1}
  # after beta

# about the admin
admin:
  keys: [xyz]   # one
"""

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
leaves = st.one_of(
    st.integers(-9, 9),
    st.booleans(),
    st.lists(st.one_of(names, st.sampled_from(["*", "a-*", "1e5", "0x1f", "1:30", "no", "~"]))),
    st.dates(date(1970, 1, 1), date(2200, 1, 1)),
    st.builds(dict),
)
mappings = st.dictionaries(names, leaves, max_size=3)
trees = st.dictionaries(names, st.one_of(leaves, mappings, st.dictionaries(names, mappings)))


def loaded(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def dumped(tree: dict[str, Any], flow: bool | None) -> str:
    yaml, out = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = flow, False
    yaml.dump(tree, out)
    return out.getvalue()


def commented(text: str) -> list[str]:
    return [line[line.index("#") :] for line in text.splitlines() if "#" in line]


@settings(deadline=None)
@given(
    trees, st.lists(names, min_size=1, max_size=3), st.one_of(leaves, mappings), st.booleans(),
    st.sampled_from([None, False, True]),
)  # fmt: skip
def test_reads_as_the_changed_mapping(
    tree: dict[str, Any], path: list[str], value: Any, remarks: bool, flow: bool | None
) -> None:
    text = dumped(tree, flow)
    if remarks and flow is False:
        text = "".join(f"# x\n{line}  # y\n" for line in text.splitlines())
    # Half of the time, somewhere that is there.
    where, place = [], tree
    for step in path:
        there = list(place)
        where.append(there[len(step) % len(there)] if there and len(step) % 2 else step)
        below = place.get(where[-1])
        place = below if isinstance(below, dict) else {}
    new = put(text, tree, tuple(where), value)
    assert loaded(new) == with_value(tree, tuple(where), value)


@settings(deadline=None)
@given(trees, st.integers(0, 100))
def test_takes_away_what_is_there(tree: dict[str, Any], number: int) -> None:
    paths = [(one,) for one in tree]
    paths += [(one, two) for one in tree if isinstance(tree[one], dict) for two in tree[one]]
    if not paths:
        return
    path = paths[number % len(paths)]
    text = dumped(tree, False)
    after = with_value(tree, path, None)
    assert (loaded(put(text, tree, path, None)) or {}) == after


@pytest.mark.parametrize(
    ("path", "value", "lost"),
    [
        (("tenants", "acme", "priority"), 3, []),
        (("tenants", "acme", "concurrent"), 3, []),
        (("tenants", "acme", "keys"), ["abc", "def"], ["# the old one"]),
        (("tenants", "beta", "priority"), 3, []),
        (("tenants", "beta", "expires"), date(2027, 1, 31), []),
        (("tenants", "gamma"), {"keys": ["ghi"]}, []),
        (("admin", "keys"), ["1", "2"], []),
        (("admin", "keys"), None, ["# one"]),
        (("tenants", "beta"), None, []),
        (("tenants", "acme", "priority"), None, ["# agreed with Bob"]),
        (("tenants", "acme"), None, ["# since May", "# the old one", "# agreed with Bob"]),
        (("more",), {"a": {"b": 1}}, []),
    ],
)
def test_comments_elsewhere_stay(path: tuple[str, ...], value: Any, lost: list[str]) -> None:
    for text in (TEXT, TEXT.rstrip("\n")):
        new = put(text, loaded(text), path, value)
        assert loaded(new) == with_value(loaded(text), path, value)
        assert commented(new) == [one for one in commented(text) if one not in lost]


def test_windows_line_ends_and_a_byte_order_mark() -> None:
    text = "\ufeff" + TEXT.replace("\n", "\r\n")
    new = put(text, loaded(text), ("tenants", "beta", "priority"), 3)
    assert loaded(new)["tenants"]["beta"]["priority"] == 3
    assert commented(new) == commented(text)


def test_what_looks_like_a_number_stays_text() -> None:
    names = ["1e5", "0x1f", "12e45", "1:30", "08", "007", "1_000", "no", "null", "~", "2027-01-31"]
    text = put("", {}, ("a",), names)
    assert loaded(text) == {"a": names}
