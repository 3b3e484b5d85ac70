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
from laura.serve.auth import Tenants, hash_of_key, parse_tenants

ROOT = Path(__file__).parents[2]
COMMANDS = ("add", "set", "list", "remove", "admin", "key add", "key revoke")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own, which the default file lies in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAURA_TENANTS", raising=False)
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
        *("--expires", "2099-01-31"),
    )
    assert made["id"] == hash_of_key(made["key"])[:12]
    tenants = Tenants.read(here / "tenants.yaml")
    assert tenants.find(made["key"]) == (tenants.get("acme"), True)
    (listed,) = answer("list")["tenants"]
    assert listed == {
        "name": "acme",
        "keys": [made["id"]],
        "adapters": ["support-*", "maths"],
        "base": False,
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
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
    assert answer("list") == {"file": "tenants.yaml", "tenants": [], "admin_keys": []}


def test_what_people_read(here: Path) -> None:
    shown = run("add", "acme", "--file", "mine.yaml", "--concurrent", "1000").stdout
    (key,) = re.findall(r"^  (sk-laura-\S{43})$", shown, re.M)
    assert "shown this once" in shown and "mine.yaml" in shown and "/admin/tenants/reload" in shown
    run("admin", "--file", "mine.yaml")
    text = run("list", "--file", "mine.yaml").stdout
    assert "use base; 1,000 at a time; priority 1\n" in text
    assert hash_of_key(key)[:12] in text and key not in text
    changed = run("set", "acme", "--file", "mine.yaml", "--no-base", "--expires", "2020-01-01")
    assert "use nothing; 1,000 at a time; priority 1; EXPIRED at 2020-01-01 00:00 UTC" in (
        changed.stdout
    )
    assert list(here.glob("*.yaml")) == [here / "mine.yaml"]


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
        (["list", "--file", "absent.yaml"], "there is no absent.yaml"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(here: Path, words: list[str], told: str) -> None:
    answer("add", "acme")
    before = (here / "tenants.yaml").read_bytes()
    ended = run(*words)
    assert ended.exit_code == 2
    assert told in ended.stderr and ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1 and ended.stdout == ""
    assert (here / "tenants.yaml").read_bytes() == before
    as_json = run(*words, "--json")
    error = json.loads(as_json.stdout)["error"]
    assert as_json.exit_code == 2 and told in error["message"] and error["bug"] is False


@pytest.mark.parametrize(
    "code",
    [
        "from laura.cli import app as cli\n"
        "sys.argv = ['laura', 'tenants', 'add', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy += ['yaml', 'rich', 'filelock', 'laura.serve']\n",
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


def test_the_file_in_the_docs_is_one() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(tenants:.*?)^```$", text, re.M | re.S)
    assert blocks
    for block in blocks:
        assert parse_tenants(block, "docs/serving.md").tenants
