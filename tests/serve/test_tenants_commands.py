"""`laura tenants ...`: answers for people and machines, mistakes in one line, help for nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from laura.cli import app as cli
from laura.serve.accounts import Accounts
from laura.serve.audit import Audit
from laura.serve.auth import Tenants, hash_of_key, parse_tenants
from laura.serve.database import Database
from laura.serve.tenant_changes import stored_tenants

ROOT = Path(__file__).parents[2]
COMMANDS = ("add", "set", "list", "remove", "import", "audit", "admin", "key add", "key revoke")
HASH = hash_of_key("key")
MINE = ("--database", "sqlite:///mine.db")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own, which the default file lies in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAURA_DATABASE", raising=False)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, ["tenants", *words])


def answer(*words: str) -> Any:
    ended = run(*words, "--json")
    assert ended.exit_code == 0, ended.stderr
    return json.loads(ended.stdout)


def test_a_tenants_life(here: Path) -> None:
    made = answer(
        *("add", "acme", "--adapters", "support-*, maths", "--no-base", "--priority", "2"),
        *("--requests-per-minute", "60", "--tokens-per-minute", "1000", "--concurrent", "8"),
        *("--tokens-per-day", "50000"),
        *("--expires", "2099-01-31"),
    )
    assert made["id"] == hash_of_key(made["key"])[:12]
    assert (here / "laura.db").stat().st_mode & 0o777 == 0o600
    tenants = Tenants.of(stored_tenants(Database("sqlite:///laura.db"))[0])
    assert tenants.find(made["key"]) == (tenants.get("acme"), True)
    (listed,) = answer("list")["tenants"]
    assert listed == {
        "name": "acme",
        "keys": [made["id"]],
        "adapters": ["support-*", "maths"],
        "base": False,
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "tokens_per_day": 50000,
        "concurrent": 8,
        "priority": 2.0,
        "expires": "2099-01-31T00:00:00Z",
        "expired": False,
    }
    changed = answer(
        *("set", "acme", "--tokens-per-minute", "none", "--expires", "none", "--adapters", ""),
        "--base",
    )
    assert (changed["tokens_per_minute"], changed["expires"]) == (None, None)
    assert (changed["adapters"], changed["base"], changed["concurrent"]) == ([], True, 8)
    second = answer("key", "add", "acme")
    assert answer("key", "revoke", "acme", made["id"])["revoked"] == made["id"]
    (listed,) = answer("list")["tenants"]
    assert listed["keys"] == [second["id"]]
    admin = answer("admin")
    assert admin["tenant"] is None and answer("list")["admin_keys"] == [admin["id"]]
    answer("admin", "--revoke", admin["id"])
    answer("remove", "acme")
    assert answer("list") == {"database": "sqlite:///laura.db", "tenants": [], "admin_keys": []}


def test_what_people_read(here: Path) -> None:
    shown = run("add", "acme", *MINE, "--concurrent", "1000").stdout
    (key,) = re.findall(r"^  (sk-laura-\S{43})$", shown, re.M)
    assert "shown this once" in shown and "mine.db" in shown and "within a second" in shown
    run("admin", *MINE)
    text = run("list", *MINE).stdout
    assert "use base; 1,000 at a time; priority 1\n" in text
    assert hash_of_key(key)[:12] in text and key not in text
    changed = run("set", "acme", *MINE, "--no-base", "--expires", "2020-01-01")
    assert "use nothing; 1,000 at a time; priority 1; EXPIRED at 2020-01-01 00:00 UTC" in (
        changed.stdout
    )
    assert list(here.glob("*.db")) == [here / "mine.db"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["add", "acme"], "there is a tenant acme already"),
        (["add", "b", "--concurrent", "1.5"], "--concurrent takes a whole number or none"),
        (["add", "b", "--requests-per-minute", "nan"], "--requests-per-minute takes a whole"),
        (["add", "b", "--tokens-per-minute", "9" * 5000], "takes a whole number"),
        (["add", "b", "--priority", "nan"], "must be a finite number"),
        (["add", "b", "--expires", "tomorrow"], "must be a day"),
        (["set", "acme"], "nothing to change was named"),
        (["set", "nobody", "--base"], "there is no tenant 'nobody'; there are: acme"),
        (["admin", "--revoke", "00000000"], "the admin has no key of this ID"),
        (["list", "--database", "sqlite:///absent.db"], "there is no absent.db"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(here: Path, words: list[str], told: str) -> None:
    answer("add", "acme")
    before = answer("list")
    ended = run(*words)
    assert ended.exit_code == 2
    assert told in ended.stderr and ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1 and ended.stdout == ""
    assert answer("list") == before
    as_json = run(*words, "--json")
    error = json.loads(as_json.stdout)["error"]
    assert as_json.exit_code == 2 and told in error["message"] and error["bug"] is False


@pytest.mark.parametrize(
    "code",
    [
        "from laura.cli import app as cli\n"
        "sys.argv = ['laura', 'tenants', 'add', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy += ['yaml', 'rich', 'sqlalchemy', 'laura.serve']\n",
        "from laura.serve import limits, tenant_changes\n",
    ],
    ids=["help", "changes"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    code = (
        "import sys\n"
        f"heavy = ['torch', 'transformers', 'numpy', 'fastapi']\n{code}"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stderr.strip() == "[]"


def test_a_file_replaces_all_and_keeps_what_was_used(here: Path) -> None:
    answer("add", "acme", "--tokens-per-minute", "100")
    old = answer("add", "old")
    accounts = Accounts(Database("sqlite:///laura.db"))
    accounts.admit("a", "acme")
    accounts.settle("a", 40)
    file = here / "tenants.yaml"
    file.write_text("tenants:\n  acme: {tokens_per_minute: 200}\n  new: {concurrent: x}\n")
    file.chmod(0o600)
    refused = run("import", "tenants.yaml")
    assert refused.exit_code == 2 and "tenants.new.concurrent (line 3)" in refused.stderr
    assert [one["name"] for one in answer("list")["tenants"]] == ["acme", "old"]
    file.write_text(f"tenants:\n  acme: {{tokens_per_minute: 200}}\n  new: {{keys: [{HASH}]}}\n")
    assert answer("import", "tenants.yaml")["tenants"] == ["acme", "new"]
    listed = {one["name"]: one["keys"] for one in answer("list")["tenants"]}
    assert listed == {"acme": [], "new": [HASH[:12]]} and old["id"] not in str(listed)
    usage = accounts.usage()["acme"]
    assert (usage.tokens, usage.requests) == (40, 1)
    assert usage.tokens_left is not None and 160 <= usage.tokens_left <= 200


def test_the_audit_log_is_shown() -> None:
    answer("add", "acme")
    log = Audit(Database("sqlite:///laura.db"))
    for number in range(3):
        log.write("adapter.load", "admin", f"a{number}", "done", f"req-{number}")
    found = answer("audit", "--last", "2")["audit"]
    assert [(one["subject"], one["request"]) for one in found] == [("a1", "req-1"), ("a2", "req-2")]
    lines = run("audit").stdout.splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["a0", "a1", "a2"]


def test_the_file_in_the_docs_is_one() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(tenants:.*?)^```$", text, re.M | re.S)
    assert blocks
    for block in blocks:
        assert parse_tenants(block, "docs/serving.md").tenants
