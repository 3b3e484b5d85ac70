"""Values changed in a YAML text: it reads as if the mapping had been changed, comments stay."""

from __future__ import annotations

import io
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from laura.serve.tenant_changes import put, with_value

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


def test_one_value_is_one_line_of_difference() -> None:
    changed = put(TEXT, loaded(TEXT), ("tenants", "acme", "priority"), 3.5)
    assert changed == TEXT.replace("priority: 2 ", "priority: 3.5 ")
    added = put(TEXT, loaded(TEXT), ("tenants", "acme", "base"), False)
    assert added == TEXT.replace("with Bob\n", "with Bob\n    base: false\n")
    assert put(added, loaded(added), ("tenants", "acme", "base"), None) == TEXT


def test_windows_line_ends_and_a_byte_order_mark() -> None:
    text = "\ufeff" + TEXT.replace("\n", "\r\n")
    new = put(text, loaded(text), ("tenants", "beta", "priority"), 3)
    assert loaded(new)["tenants"]["beta"]["priority"] == 3
    assert commented(new) == commented(text)


def test_nothing_but_comments() -> None:
    assert put("# a\n# b", {}, ("tenants", "x"), {"base": True}) == (
        "# a\n# b\ntenants:\n  x:\n    base: true\n"
    )
    assert put("# a\n", {}, ("tenants", "x"), None) == "# a\n"


def test_the_last_one_leaves_an_empty_mapping() -> None:
    whole = {"tenants": {"a": {"base": True}}, "admin": {}}
    text = put("tenants:\n  a:\n    base: true\nadmin: {}\n", whole, ("tenants", "a"), None)
    assert loaded(text) == {"tenants": {}, "admin": {}}
    assert loaded(put(text, loaded(text), ("tenants", "b"), {"base": False})) == {
        "tenants": {"b": {"base": False}},
        "admin": {},
    }


def test_what_looks_like_a_number_stays_text() -> None:
    names = ["1e5", "0x1f", "12e45", "1:30", "08", "007", "1_000", "no", "null", "~", "2027-01-31"]
    text = put("", {}, ("a",), names)
    assert loaded(text) == {"a": names}
