"""Names and set-up: no text installs another project's `laura`; make installs what it needs."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from laura.study.trackers import TRACKERS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".txt", ".html", ".js", ".jinja", ".service", ""}
FOLDERS = ("laura", "tests", "scripts", "benchmarks", "recipes", "docs", "deploy", ".ci")
RUN = re.compile(r"\b(?:uvx|pipx run)(?: --(?:from|spec))? ([^\s`]+)")
INSTALL = re.compile(r"\b(?:pip3?|pipx|uv(?: tool| pip)?) (?:install|add|download)\b([^`;&|)\n]*)")
WITH_EXTRA = re.compile(r"\blaura\[[a-z]+(?:-[a-z]+)*(?:,[a-z-]+)*\]")
OUR_EXTRA = re.compile(r"\blaura-lab\[([a-z]+[a-z,-]*)\]")


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of ours but this one, which shows wrong ones."""
    files = [path for name in FOLDERS for path in (ROOT / name).rglob("*")]
    for path in [*files, *ROOT.iterdir()]:
        if path.is_file() and path.suffix in SUFFIXES and path != Path(__file__).resolve():
            yield path, path.read_text(encoding="utf-8", errors="replace")


def other_projects(text: str) -> list[str]:
    """What in a text would install PyPI's `laura`, or names an extra of it."""
    # A command may go on in the next line, of a shell, a comment, a string.
    joined = re.sub(r"\\\n", " ", text)
    joined = re.sub(r"\b(install|add|download) *[\"']?\n[\s#\"'/*]*", r"\1 ", joined)
    found = WITH_EXTRA.findall(joined) + [name for name in RUN.findall(joined) if name == "laura"]
    for command in INSTALL.finditer(joined):
        words = [word.strip("'\".,:({[<>") for word in command[1].split()]
        found += [word for word in words if re.fullmatch(r"laura([=<>~!@].*)?", word)]
    return found


@pytest.mark.parametrize(
    "text",
    [
        "pip install laura",
        "Say `pip install -U laura`.",
        "python -m pip install --upgrade 'laura>=0.1'",
        "pip install torch \\\n  laura",
        "MMLU needs more (pip install\n# 'laura[lm-eval]').",
        '"pip install "\n    "laura==0.1.0"',
        "needs the extra laura[test,lm-eval]",
        "uv tool install laura",
        "`uvx laura compare`",
        "pipx run --spec laura laura",
    ],
)
def test_the_other_project_is_found(text: str) -> None:
    assert other_projects(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install laura-lab",
        "pip install 'laura-lab[lm-eval]'",
        "/opt/laura/bin/pip install --constraint constraints.txt .\ninstall -d -o laura /srv",
        "`pip install .`, and laura stands in .venv/bin",
        "pip install ./laura",
        'rates["laura"]',
        "uvx --from laura-lab laura compare micro",
    ],
)
def test_our_own_is_not(text: str) -> None:
    assert not other_projects(text)


def test_no_text_installs_the_other_project() -> None:
    seen = 0
    for path, text in texts():
        seen += 1
        assert not other_projects(text), f"{path} would install another project's laura"
    assert seen > 300


def test_distribution_command_and_extras() -> None:
    assert PROJECT["name"] == "laura-lab" and PROJECT["scripts"] == {"laura": "laura.cli.app:main"}
    extras = PROJECT["optional-dependencies"]
    named = {
        (path, extra)
        for path, text in texts()
        for match in OUR_EXTRA.finditer(text)
        for extra in match[1].split(",")
    }
    assert {extra for _, extra in named} >= {"lm-eval", "vllm", "test"}
    assert not {(path, extra) for path, extra in named if extra not in extras}


def words_of(node: ast.AST, module: str) -> str:
    """The text in an expression: its literals, and the module's constants that it names."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        value: Any = getattr(importlib.import_module(module), node.id, "")
        return value if isinstance(value, str) else ""
    return "".join(words_of(child, module) for child in ast.iter_child_nodes(node))


def test_every_missing_extra_says_what_to_install() -> None:
    found = 0
    for path in sorted((ROOT / "laura").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "MissingExtraError":
                found += 1
                if module == "laura.study.trackers.__init__":  # an extra each, by its name
                    assert set(PROJECT["optional-dependencies"]) >= set(TRACKERS)
                    continue
                words = "".join(words_of(argument, module) for argument in node.args)
                named = re.search(r"pip install '(laura-lab\[[a-z-]+\])'", words)
                assert named, f"{path}:{node.lineno} names no extra: {words}"
                assert Requirement(named[1]).extras <= set(PROJECT["optional-dependencies"])
    assert found >= 3


def test_wheel_and_sdist_hold_the_product(tmp_path: Path) -> None:
    """What `make dist` builds: the wheel is made of the sdist, and lacks no file of the package."""
    run = [sys.executable, "-m"]
    build = [*run, "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, capture_output=True, check=True)
    (wheel,), (sdist,) = tmp_path.glob("laura_lab-*.whl"), tmp_path.glob("laura_lab-*.tar.gz")
    check = [*run, "twine", "check", "--strict", str(wheel), str(sdist)]
    told = subprocess.run(check, capture_output=True, text=True, check=True).stdout
    assert told.count("PASSED") == 2
    product = {
        path.relative_to(ROOT).as_posix().removeprefix("laura/")
        for folder in ("laura", "recipes")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as packed:
        names = [name for name in packed.namelist() if "dist-info/" not in name]
        (entry,) = (name for name in packed.namelist() if name.endswith("entry_points.txt"))
        assert "laura = laura.cli.app:main" in packed.read(entry).decode()
    assert {name.removeprefix("laura/") for name in names} == product
    for kind in (
        "recipes/micro.yaml", "serve/migrations/versions/*.py", "serve/page/*.js",
        "report/templates/*", "micro/base/*.safetensors", "py.typed",
    ):  # fmt: skip
        assert any(Path(name).match(kind) for name in product), kind
    with tarfile.open(sdist) as packed_source:
        files = {name.partition("/")[2] for name in packed_source.getnames()}
    assert {"LICENSE", "Makefile", "mkdocs.yml", "constraints.txt", "tests/conftest.py"} <= files


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
TARGETS = dict(re.findall(r"^([a-z-]+):(.*?)##", (ROOT / "Makefile").read_text("utf-8"), re.M))
PRODUCT_ONLY = {"demo", "calibration", "sbom"}
NOTHING = {"help", "browser", "postgres", "image", "clean"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what make reads, and no `.venv` yet."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def would_install(checkout: Path, *targets: str) -> list[str]:
    """What `make` would hand pip, by its dry run."""
    call = ["make", "-n", *targets, "PYTHON=python3"]
    done = subprocess.run(call, cwd=checkout, capture_output=True, text=True, check=True)
    installs = [line.split() for line in done.stdout.splitlines() if " -m pip install" in line]
    for words in installs:
        assert words[words.index("--constraint") + 1] == "constraints.txt"
    return [words[-1].strip("'") for words in installs]


@needs_make
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_target_installs_what_it_needs(target: str, checkout: Path) -> None:
    wanted = [] if target in NOTHING else ["."] if target in PRODUCT_ONLY else [".[dev]"]
    assert would_install(checkout, target) == wanted


@needs_make
def test_what_is_installed_is_not_installed_again(checkout: Path) -> None:
    """The tools include the product; the product's stamp says nothing of the tools."""
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text("#!/bin/sh\n")  # pip and all else does nothing
    (binaries / "python").chmod(0o755)
    (checkout / ".venv" / ".laura-installed").touch()
    assert would_install(checkout, "demo") == []
    assert would_install(checkout, "check") == [".[dev]"]
    subprocess.run(["make", "setup"], cwd=checkout, capture_output=True, check=True)
    assert would_install(checkout, "demo", "check", "test") == []
    (checkout / "pyproject.toml").touch()
    assert would_install(checkout, "demo") == ["."]
    assert would_install(checkout, "check") == [".[dev]"]


@needs_make
def test_help_tells_every_target(checkout: Path) -> None:
    call = ["make", "--no-print-directory", "help", "PYTHON=python3"]
    done = subprocess.run(call, cwd=checkout, capture_output=True, text=True, check=True)
    told = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert {name for name, _ in told} == set(TARGETS)
    phony = re.search(r"\.PHONY:((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text("utf-8"))
    assert phony and set(phony[1].replace("\\", "").split()) == set(TARGETS)
