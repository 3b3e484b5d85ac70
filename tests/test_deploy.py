"""The systemd unit and the container file in deploy/: what they start exists and is allowed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from sqlalchemy import make_url

from laura.cli.app import app
from laura.serve.auth import check_address

ROOT = Path(__file__).resolve().parents[1]
UNIT, CONTAINER = ROOT / "deploy" / "laura.service", ROOT / "deploy" / "Containerfile"
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
SERVE: Any = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
# Instructions of container files, as BuildKit and Buildah know them.
INSTRUCTIONS = {"ARG", "FROM", "ENV", "WORKDIR", "RUN", "COPY", "USER", "EXPOSE", "VOLUME",
                "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """Every instruction with its words, lines joined and comments left out."""
    lines = [line for line in CONTAINER.read_text("utf-8").splitlines() if line[:1] != "#"]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, words) for name, _, words in
            (line.partition(" ") for line in joined.splitlines() if line)]  # fmt: skip


def instruction(name: str) -> str:
    """The words of an instruction that the last stage has once."""
    (found,) = (words for one, words in instructions() if one == name)
    return found


def service() -> dict[str, list[str]]:
    """The settings of the unit's [Service]; one that stands twice has two values."""
    text = re.sub(r"\\\n\s*", "", UNIT.read_text("utf-8"))
    section = text.partition("[Service]\n")[2].partition("\n[")[0]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line and line[0] != "#":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def unit_command() -> list[str]:
    """What the unit starts, with its own variables filled in."""
    given = dict(one.split("=", 1) for one in service()["Environment"])
    (line,) = service()["ExecStart"]
    return shlex.split(re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], line))


def container_command() -> list[str]:
    return [*json.loads(instruction("ENTRYPOINT")), *json.loads(instruction("CMD"))]


def database(text: str) -> str:
    """Which one the environment names."""
    (found,) = re.findall(r"LAURA_DATABASE=(\S+)", text)
    return str(found)


def values(command: list[str], tmp_path: Path) -> dict[str, Any]:
    """What `laura serve` makes of a command line; its folders are made below `tmp_path`."""
    program, name, *words = command
    assert Path(program).name == "laura" and name == "serve"
    words = [str(tmp_path / word[1:]) if word.startswith("/") else word for word in words]
    (tmp_path / words[words.index("--adapters") + 1]).mkdir(parents=True)
    with click.Context(SERVE) as context:
        return dict(SERVE.make_context("serve", words, parent=context).params)


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        (unit_command, lambda: " ".join(service()["Environment"])),
        (container_command, lambda: " ".join(w for name, w in instructions() if name == "ENV")),
    ],
)
def test_the_command_is_one_that_laura_serve_takes(
    command: Any, environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAURA_DATABASE", database(environment()))
    found = values(command(), tmp_path)
    check_address(found["host"], has_tenants=found["database"] is not None)
    assert make_url(found["database"]).drivername == "sqlite" and found["adapters"]
    from laura.models.registry import MODELS

    assert found["base"] in MODELS


def test_the_unit_leaves_answers_their_time_and_does_not_repeat_mistakes(tmp_path: Path) -> None:
    from laura.results.errors import EXIT_USER
    from laura.serve.server import FLUSH_SECONDS

    found = service()
    grace = values(unit_command(), tmp_path)["grace"]
    assert int(found["TimeoutStopSec"][0]) > grace + FLUSH_SECONDS
    assert found["RestartPreventExitStatus"] == [str(EXIT_USER)]
    # What it writes lies where it may write.
    assert found["ProtectSystem"] == ["strict"]
    writable = {
        f"/var/{kind}/{found[f'{name}Directory'][0]}"
        for name, kind in (("State", "lib"), ("Cache", "cache"))
    }
    path = make_url(database(" ".join(found["Environment"]))).database
    assert path and str(Path(path).parent) in writable
    assert "LAURA_CACHE=/var/cache/laura" in found["Environment"]
    assert "/var/cache/laura" in writable


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    # There is no /opt/laura here, and the rest of the unit does not mind.
    text = UNIT.read_text("utf-8").replace("/opt/laura/bin/laura", shutil.which("true") or "")
    for name, content, faults in (
        ("good.service", text, False),
        ("bad.service", text.replace("UMask=", "UMasc="), True),
    ):
        (tmp_path / name).write_text(content)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        told = [line for line in done.stderr.splitlines() if name in line]
        assert bool(told) == faults, done.stderr


def test_the_container_file_is_well_formed_and_copies_what_there_is() -> None:
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert [name for name, _ in found][:2] == ["ARG", "FROM"]
    copied = []
    for name, words in found:
        if name == "COPY" and "--from=" not in words:
            *sources, _ = words.split()
            copied += sources
    assert all((ROOT / source).exists() for source in copied)
    # All that the wheel is made of (pyproject.toml names them).
    assert {"pyproject.toml", "README.md", "LICENSE", "laura", "recipes"} <= set(copied)
    assert instruction("EXPOSE") == "8000" and not instruction("USER").startswith(("0", "root"))
    check = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    compile(check[2], "health check", "exec")
    owned = " ".join(words for name, words in found if name == "RUN")
    for folder in json.loads(instruction("VOLUME")):
        assert folder in owned, "a volume belongs to whom its folder belonged to"


def test_the_docs_point_at_both_and_name_their_paths() -> None:
    for name in ("deploy/laura.service", "deploy/Containerfile"):
        assert name in SERVING
    paths = [word for word in (*unit_command(), *container_command()) if word.startswith("/")]
    for path in paths:
        assert path in SERVING, path
