"""Completion as a shell asks for it: by the script that it sources, and typer's protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from laura.models.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study, an adapter, a base and a recipe; `laura` is a command."""
    for name in (
        "studies/mine/study.json", "studies/series/series.json", "studies/other/notes.json",
        "adapters/poet/adapter_config.json", "models/tiny/config.json", "mine.yaml",
        "bin/laura", "home/.bashrc",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    script = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m laura "$@"\n'
    (tmp_path / "bin" / "laura").write_text(script)
    (tmp_path / "bin" / "laura").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bash(script: str) -> list[str]:
    """Lines that bash prints."""
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()


def offered(*words: str) -> list[str]:
    """What bash would offer after these words, by the function of the script itself."""
    quoted = " ".join(f"'{word}'" for word in words)
    return bash(
        'eval "$(_LAURA_COMPLETE=source_bash laura)"\n'
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
        '_laura_completion laura\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )


def test_commands_options_and_names(place: Path) -> None:
    assert offered("laura", "comp") == ["compare"]
    assert {"--workers", "--out", "--json"} <= set(offered("laura", "compare", "--"))
    assert offered("laura", "report", "studies", "--format", "") == ["html", "md"]
    recipes = offered("laura", "compare", "mi")
    assert {"micro", "micro/paper", "mine.yaml"} <= set(recipes)
    assert all(name.startswith("mi") for name in recipes)
    assert offered("laura", "report", "") == ["studies/mine", "studies/series"]
    assert offered("laura", "claims", "studies/mine", "studies/s") == ["studies/series"]
    assert offered("laura", "chat", "micro", "--adapter", "ad") == ["adapters/poet"]
    assert offered("laura", "merge", "micro", f"{place}/ad") == [f"{place}/adapters/poet"]
    assert offered("laura", "serve", "") == [*MODELS, "models/tiny"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_answered_in_their_own_words(place: Path, shell: str) -> None:
    script = bash(f"_LAURA_COMPLETE=source_{shell} laura")
    assert any(f"_LAURA_COMPLETE=complete_{shell}" in line for line in script)
    asked = "_TYPER_COMPLETE_ARGS='laura report st' _TYPER_COMPLETE_FISH_ACTION=get-args"
    found = "\n".join(bash(f"{asked} _LAURA_COMPLETE=complete_{shell} laura"))
    assert "studies/mine" in found and "studies/series" in found and "other" not in found


def test_it_is_installed_for_the_shell_one_sits_in(place: Path) -> None:
    assert "bash completion installed" in "".join(bash("laura --install-completion; true"))
    assert "laura" in (place / "home" / ".bashrc").read_text()
