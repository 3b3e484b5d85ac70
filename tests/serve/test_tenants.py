"""Tenants: who a key lets in, what each may use, and files that are refused with every fault."""

from __future__ import annotations

import hashlib
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laura.results.errors import StoreError
from laura.serve import auth
from laura.serve.auth import (
    Tenant,
    Tenants,
    hash_of_key,
    may_use,
    new_key,
    parse_tenants,
    read_tenants,
    without_keys,
)

HASHES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4)]
NOON = datetime(2027, 1, 31, 12, tzinfo=UTC)


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tenants.yaml"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def of_key(tenants: Tenants, key: str, at: datetime | None = None) -> Tenant | None:
    tenant, valid = tenants.find(key, at)
    return tenant if valid else None


def faults(text: str) -> str:
    with pytest.raises(StoreError) as refused:
        parse_tenants(text, "tenants.yaml")
    return str(refused.value)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"""
tenants:
  acme:
    keys: ['{HASHES[0]}', '{HASHES[1]}']
    adapters: [support-*, maths]
    base: false
    requests_per_minute: 60
    tokens_per_minute: 1e6
    concurrent: 8
    priority: 2
    expires: 2027-01-31
  plain: {{}}
admin: {{keys: ['{HASHES[2]}']}}
""",
    )
    tenants = Tenants.of(read_tenants(path))
    assert tenants.names == ("acme", "plain")
    assert tenants.get("acme") == Tenant(
        name="acme",
        keys=(HASHES[0], HASHES[1]),
        adapters=("support-*", "maths"),
        base=False,
        requests_per_minute=60,
        tokens_per_minute=1_000_000,
        concurrent=8,
        priority=2.0,
        expires=datetime(2027, 1, 31, tzinfo=UTC),
    )
    assert tenants.get("plain") == Tenant(name="plain")
    assert tenants.get("nobody") is None
    # The keys of which HASHES are the hashes.
    early = NOON - timedelta(days=2)
    assert of_key(tenants, "0", early) == of_key(tenants, "1", early) == tenants.get("acme")
    assert of_key(tenants, "2", early) is None and tenants.is_admin("2")
    assert not tenants.is_admin("0") and not tenants.is_admin("")


def test_a_key_is_valid_until_its_moment() -> None:
    tenants = Tenants([Tenant(name="a", keys=[hash_of_key("k")], expires=NOON)])
    tenant = tenants.get("a")
    before = NOON - timedelta(microseconds=1)
    assert tenants.find("k", before) == (tenant, True)
    assert tenants.find("k", NOON) == (tenant, False)
    assert tenants.find("K", before) == tenants.find("", before) == (None, False)


@pytest.mark.parametrize(
    ("adapters", "name", "allowed"),
    [
        (["*"], "anything", True),
        (["maths"], "maths", True),
        (["maths"], "Maths", False),
        (["maths"], "maths2", False),
        (["math*"], "maths2", True),
        (["math*"], "math", True),
        (["math*"], "mat", False),
        (["math*", "code"], "code", True),
        ([], "maths", False),
        (["a.b"], "aXb", False),
    ],
)
def test_what_a_tenant_may_use(adapters: list[str], name: str, allowed: bool) -> None:
    assert may_use(Tenant(name="a", adapters=adapters), name) is allowed


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2027-01-31", "2027-01-31T00:00:00"),
        ("'2027-01-31'", "2027-01-31T00:00:00"),
        ("2027-01-31 12:00:00", "2027-01-31T12:00:00"),
        ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00"),
        ("'2027-01-31T12:00Z'", "2027-01-31T12:00:00"),
        ("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00"),
    ],
)
def test_moments_are_in_utc(written: str, moment: str) -> None:
    file = parse_tenants(f"tenants: {{a: {{expires: {written}}}}}", "x")
    assert file.tenants["a"].expires == datetime.fromisoformat(moment).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("requests_per_minute: 0", "greater than or equal to 1, came 0"),
        ("requests_per_minute: -5", "greater than or equal to 1, came -5"),
        ("requests_per_minute: 1000001", "less than or equal to 1000000"),
        ("requests_per_minute: .nan", "must be a valid integer, came nan"),
        ("requests_per_minute: 1.5", "must be a valid integer, came 1.5"),
        ("requests_per_minute: '5'", "must be a valid integer, came '5'"),
        ("requests_per_minute: true", "must be a valid integer, came True"),
        ("tokens_per_minute: 99999999999", "less than or equal to 10000000000"),
        ("tokens_per_minute: 9999999999999999999999999", "too large a number"),
        ("concurrent: 0", "greater than or equal to 1"),
        ("priority: .nan", "finite number"),
        ("priority: .inf", "finite number"),
        ("priority: 0", "greater than or equal to 0.01"),
        ("priority: 1e9", "less than or equal to 100"),
        ("base: 1", "must be a valid boolean, came 1"),
        ("adapters: maths", "must be a list, came 'maths'"),
        ("adapters: [../x]", "must be \"\\*\" for all.*came '../x'"),
        ("adapters: ['a*b']", r"came 'a\*b'"),
        ("adapters: ['**']", r"came '\*\*'"),
        ("adapters: [3]", "must be a valid string, came 3"),
        ("expires: soon", "must be a day, such as 2027-01-31.*came 'soon'"),
        ("expires: 20270131", "must be a day.*came 20270131"),
        ("expires: '0001-01-01T00:00+10:00'", "must be a day"),
        ("expired: 2027-01-31", "unknown key; did you mean expires"),
        ("keys: [abc]", "must be the SHA-256 of a key"),
        (f"keys: ['{'A' * 64}']", "64 small hexadecimal digits"),
        (f"keys: {HASHES[:3]}", "holds 3 keys, 2 are the most"),
        (f"keys: {[HASHES[0]] * 2}", r"tenants\.a\.keys\.1.*is a key of tenants\.a already"),
    ],
)
def test_settings_that_cannot_be_meant(setting: str, told: str) -> None:
    message = faults(f"tenants:\n  a:\n    {setting}\n")
    assert re.search(told, message), message
    assert "1 mistake" in message and "line 3" in message


@pytest.mark.parametrize(
    "name", ["-a", ".a", "../a", "a/b", "a b", "ä", "a\\nb", "", "a" * 129, "a\\0"]
)
def test_names_that_cannot_be_used(name: str) -> None:
    assert "a name must be 1 to 128 letters" in faults(f'tenants: {{"{name}": {{}}}}')


def test_one_key_has_one_owner() -> None:
    message = faults(
        f"tenants:\n  a: {{keys: ['{HASHES[0]}']}}\n  b: {{keys: ['{HASHES[0]}']}}\n"
        f"admin: {{keys: ['{HASHES[0]}']}}\n"
    )
    assert "tenants.b.keys.0 (line 3): is a key of tenants.a" in message
    assert "admin.keys.0 (line 4): is a key of tenants.a" in message


def test_every_fault_at_once_with_its_line() -> None:
    message = faults(
        "tenants:\n  a:\n    base: 1\n    concurrent: -1\n    base: 2\n  b: 3\n  5: {}\nx: 1\n"
    )
    assert "6 mistakes" in message
    for line, words in (
        (5, "tenants.a.base"),
        (4, "tenants.a.concurrent"),
        (6, "tenants.b"),
        (7, "tenants.5"),
        (8, "x"),
    ):
        assert f"{words} (line {line})" in message


def test_no_message_tells_a_key() -> None:
    key = new_key()
    for text in (
        f"tenants: {{a: {{keys: [{key}]}}}}",
        f"tenants: {{a: {{keys: {key}}}}}",
        f"tenants: {{{key}: 3}}",
        f"admin: {key}",
        f"{key}: 1",
        f"tenants: {{a: {{adapters: [{key}/]}}}}",
        f"tenants: [ {key}",
    ):
        assert key[12:] not in faults(text)


@given(st.text(), st.text())
def test_keys_are_struck_out_wherever_they_stand(before: str, after: str) -> None:
    key = new_key()
    assert key[12:] not in without_keys(before + key + after)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660, 0o777])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path, "tenants: {}", mode)
    with pytest.raises(StoreError, match=rf"written by others \(mode {mode:03o}\).*chmod go-w"):
        read_tenants(path)


def test_what_is_no_tenants_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        read_tenants(tmp_path / "absent.yaml")
    with pytest.raises(StoreError, match="a folder, not a regular file"):
        read_tenants(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="a pipe, not a regular file"):
        read_tenants(tmp_path / "pipe")
    path = write(tmp_path, "tenants: {}")
    path.write_bytes(b"tenants: \xff")
    with pytest.raises(StoreError, match="not UTF-8"):
        read_tenants(path)
    for text in ("", "[]", "tenants: {", "a: b: c", "tenants: !!bool maybe"):
        path.write_text(text)
        with pytest.raises(StoreError, match="mistake"):
            read_tenants(path)


@pytest.mark.parametrize("name", ["admin", "Admin", "OTHER", "other", "'-'"])
def test_names_that_logs_and_metrics_use_for_others(tmp_path: Path, name: str) -> None:
    words = "a name must be" if "-" in name else f"{name} is what logs and metrics call"
    with pytest.raises(StoreError, match=words):
        read_tenants(write(tmp_path, f"tenants: {{{name}: {{}}}}"))


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MOST_TENANTS_BYTES", 2**20)
    with pytest.raises(StoreError, match="has 1,048,577 bytes, allowed are 1,048,576"):
        read_tenants(write(tmp_path, "#" * (2**20 + 1)))


def test_every_key_costs_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known, unknown and expired keys are hashed, marked and looked up once; none is compared."""
    tenants = Tenants(
        [
            Tenant(name="a", keys=[hash_of_key("valid")]),
            Tenant(name="b", keys=[hash_of_key("expired")], expires=datetime(2020, 1, 1)),
        ]
    )
    steps: list[str] = []

    def count(holder: Any, name: str) -> None:
        original = getattr(holder, name)

        def counted(*given: Any) -> Any:
            steps.append(name)
            return original(*given)

        monkeypatch.setattr(holder, name, counted)

    count(auth, "hash_of_key")
    count(tenants, "_mark")
    seen = []
    for key in ("valid", "expired", "unknown"):
        steps.clear()
        tenants.find(key)
        seen.append(list(steps))
    assert seen == [["hash_of_key", "_mark"]] * 3
