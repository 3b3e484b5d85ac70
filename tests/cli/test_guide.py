"""What guide and README show is valid: recipes, commands with their options, Python, links."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main

from laura.cli.app import app
from laura.recipe.document import YamlDocument, yaml_text
from laura.recipe.reading import read_measure_section, read_study
from laura.recipe.shipped import find_recipe, shipped_recipes

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("README.md", "CONTRIBUTING.md", "docs/guide.md", "docs/python.md", "docs/serving.md",
         "docs/scale.md")  # fmt: skip
PAGES = [ROOT / name for name in NAMES]
SERVING = ROOT / "docs" / "serving.md"  # its YAML is no recipe
TAKES_RECIPE = {"compare", "train", "plan"}
ROOT_COMMAND = typer.main.get_command(app)
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
        if kind == "yaml" and page.name == "serving.md":
            continue  # what it shows is a tenants file
        text = page.read_text(encoding="utf-8")
        for one in re.finditer(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S):
            line = text.count("\n", 0, one.start()) + 1
            found.append(pytest.param(one[1], id=f"{page.name}:{line}"))
    return found


def commands() -> list[Any]:
    """Every line that begins with `laura`, in a shell block or between backticks."""
    found = []
    for page in [*PAGES, SERVING]:
        lines = page.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
        for number, line in enumerate(lines, 1):
            for code in [line, *re.findall(r"`([^`]+)`", line)]:
                if re.match(r"laura [a-z]", code):
                    found.append(pytest.param(code, id=f"{page.name}:{number}:{code[:40]}"))
    return found


def laid_over(part: dict[str, Any]) -> dict[str, Any]:
    """A whole recipe with this part; arms replace the skeleton's, other sections add keys."""
    whole = {**SKELETON, **part}
    for name in ("data", "measure"):
        whole[name] = {**SKELETON[name], **part.get(name, {})}
    return whole


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and the words that are left."""
    command: Any = ROOT_COMMAND
    while below := getattr(command, "commands", None):
        assert words and words[0] in below, f"no such command: {words}"
        command, words = below[words[0]], words[1:]
    return command, words


def values_of(words: list[str], option: str) -> list[str]:
    return [value for word, value in pairwise(words) if word == option]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_and_parts_of_recipes(text: str, tmp_path: Path) -> None:
    data = YamlDocument.parse(text, "block").data
    file = tmp_path / "recipe.yaml"
    file.write_text(text if "name" in data else yaml_text(laid_over(data)), encoding="utf-8")
    read_study(file)


@pytest.mark.parametrize("code", commands())
def test_commands_and_options_exist(code: str, tmp_path: Path) -> None:
    words = shlex.split(code, comments=True)[1:]
    command, words = command_of(words)
    if command.context_settings.get("ignore_unknown_options"):
        return  # its options are another program's
    known = {name for one in command.params for name in one.opts} | {"--help"}
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


@pytest.mark.parametrize("page", [*PAGES, SERVING], ids=lambda page: page.name)
def test_make_targets_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M))
    assert not named - targets
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading and target.suffix == ".md":
            lines = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
            assert heading in slugs, link
