"""What documents and help texts show is valid: recipes, commands as the CLI reads them, Python.

`test_documents.py` runs them. Links are mkdocs' to check (`make check`).
"""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from laura.cli.app import app
from laura.recipe.document import YamlDocument, yaml_text
from laura.recipe.reading import read_measure_section, read_study
from laura.recipe.shipped import find_recipe, shipped_recipes
from laura.serve.auth import parse_tenants

ROOT = Path(__file__).resolve().parents[2]
# What a user reads and types; the log tells of what was.
PAGES = [
    *(path for path in ROOT.glob("*.md") if path.name not in ("CHANGELOG.md", "LOG.md")),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "benchmarks" / "README.md",
]
TAKES_RECIPE = {"compare", "train", "plan"}
ROOT_COMMAND: Any = typer.main.get_command(app)
COMMANDS = "|".join(ROOT_COMMAND.commands)
# What a part of a recipe is laid over; the guide's full and lora arms stand for the rest.
SKELETON: dict[str, Any] = {
    "name": "x",
    "base": {"model": "x"},
    "data": {"train": "gsm8k", "test": {"source": "gsm8k", "split": "test"}},
    "budget": {"epochs": [1]},
    "arms": {
        "full": {"method": "full"},
        "lora": {"method": "lora", "learning_rates": [1e-4, 3e-4, 1e-3]},
    },
    "train": {"batch_tokens": 16384, "rows_per_pass": 1},
    "measure": {"forgetting": ["hellaswag"]},
}


def blocks(kind: str) -> list[Any]:
    """Every fenced block of one language, with the page and the line it begins at."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for one in re.finditer(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S):
            line = text.count("\n", 0, one.start()) + 1
            found.append(pytest.param(one[1], id=f"{page.name}:{line}"))
    return found


def commands() -> list[Any]:
    """Every `laura ...` of a shell block, as a line, and between backticks, as a mention."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", "")
        for block in re.finditer(r"^```(sh)?\n(.*?)^```$", text, re.M | re.S):
            # In a container or a unit's folder it is the same command.
            before = r"(?:.*[\s/])?" if block[1] else ""
            for line in block[2].replace("--entrypoint laura gate ", "laura ").splitlines():
                if named := re.match(rf"{before}(laura (?:{COMMANDS})\b.*)", line):
                    found.append((page, text.count("\n", 0, block.start()), named[1], True))
        for one in re.finditer(r"`(laura [a-z][^`]*)`", text):
            found.append((page, text.count("\n", 0, one.start()), one[1], False))
    found += [(Path("help"), 0, line, True) for line in help_examples()]
    return [
        pytest.param(code, whole, id=f"{page.name}:{line + 1}:{code[:40]}")
        for page, line, code, whole in found
    ]


def help_examples() -> list[str]:
    """The examples in the help of every command."""
    found, todo = [], [ROOT_COMMAND]
    while todo:
        command: Any = todo.pop()
        todo += getattr(command, "commands", {}).values()
        shown = (command.help or "").replace("\\\n", "").partition("Example:")[2]
        found += [line.strip() for line in shown.splitlines() if line.strip().startswith("laura ")]
    assert len(found) > 30
    return found


def laid_over(part: dict[str, Any]) -> dict[str, Any]:
    """A whole recipe with this part; arms replace the skeleton's, other sections add keys."""
    whole = {**SKELETON, **part}
    for name in ("data", "measure"):
        whole[name] = {**SKELETON[name], **part.get(name, {})}
    return whole


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and the words that are left."""
    command = ROOT_COMMAND
    while below := getattr(command, "commands", None):
        assert words and words[0] in below, f"no such command: {words}"
        command, words = below[words[0]], words[1:]
    return command, words


def values_of(words: list[str], option: str) -> list[str]:
    return [value for word, value in pairwise(words) if word == option]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_and_parts_of_recipes(text: str, tmp_path: Path) -> None:
    if text.startswith("tenants:"):
        assert parse_tenants(text, "block").tenants
        return
    data = YamlDocument.parse(text, "block").data
    file = tmp_path / "recipe.yaml"
    file.write_text(text if "name" in data else yaml_text(laid_over(data)), encoding="utf-8")
    read_study(file)


@pytest.mark.parametrize(("code", "whole"), commands())
def test_commands_and_options_exist(
    code: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of a shell block is read by the command line itself, a mention names what there is."""
    words = shlex.split(code.partition(" > ")[0], comments=True)[1:]
    command, words = command_of(words)
    if command.context_settings.get("ignore_unknown_options"):
        return  # its options are another program's
    if whole:
        for word in words:  # what has to be there
            if re.fullmatch(r"[A-Za-z][\w./-]*", word):
                there = tmp_path / word
                there.parent.mkdir(parents=True, exist_ok=True)
                there.touch() if there.suffix else there.mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path)
        with click.Context(ROOT_COMMAND) as root:
            command.make_context(command.name, list(words), parent=root)
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    known.add("--help")
    given = [word for word in words if word.startswith("-")]
    assert not set(given) - known
    overrides = values_of(words, "--set")
    if command.name == "evaluate":
        if overrides:
            read_measure_section(overrides)
    elif command.name in TAKES_RECIPE and words and not words[0].startswith("-"):
        name = words[0].removeprefix("recipes/").removesuffix(".yaml")
        if name in shipped_recipes():
            read_study(find_recipe(name), overrides)
            return
        assert "recipes/" not in words[0], f"no such recipe: {words[0]}"
        assert words[0].endswith(".yaml") or words[0].isupper(), f"no such recipe: {words[0]}"
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml_text(SKELETON), encoding="utf-8")
        read_study(file, [one for one in overrides if not one.startswith("settings.")])


@pytest.mark.parametrize("text", blocks("python"))
def test_python_is_python(text: str) -> None:
    compile(text, "block", "exec")


@pytest.mark.parametrize("text", blocks("json"))
def test_what_a_client_starts_is_a_command(text: str) -> None:
    (server,) = json.loads(text)["mcpServers"].values()
    assert server["command"] == "laura"
    command_of(server["args"])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text("utf-8"), re.M))
        assert not named - targets, page
