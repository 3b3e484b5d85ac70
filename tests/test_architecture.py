"""The house's rules, read off the syntax trees: floors, late imports, sizes, words."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "laura"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms of one floor never import one another; a floor imports itself and what is below.
FLOORS: dict[str, int] = {
    "laura": 0,
    "results": 1,
    "recipe": 2,
    "data": 3,
    "models": 4,
    "engine": 5,
    "training": 6,
    "evals": 6,
    "analysis": 6,
    "serve": 6,
    "micro": 6,
    "study": 7,
    "report": 7,
    "api": 8,
    "watch": 8,
    "cli": 9,
    "__main__": 10,
}
# Files of the command line that a command imports when it needs them.
OPENED_LATE = {"chat_screen", "doctor", "progress"}
NO_TORCH = {"torch", "transformers", "datasets", "peft", "accelerate", "lm_eval", "gguf"}
SERVER = {"fastapi", "starlette", "uvicorn", "prometheus_client"}
HEAVY = (
    NO_TORCH
    | SERVER
    | {"pydantic", "ruamel", "numpy", "altair", "vl_convert", "jinja2", "rich", "sqlalchemy"}
)
# What an extra brings, and the only files that may import it.
EXTRAS = {
    "lm_eval": {"evals/lm_eval/model.py", "evals/lm_eval/tasks.py"},
    "langdetect": {"evals/lm_eval/tasks.py"},
    "nltk": {"evals/lm_eval/tasks.py"},
    "pandas": {"api.py"},
    "cryptography": {"models/signatures.py"},
    "bitsandbytes": {"models/nf4.py"},
    "ray": {"study/seats.py"},
    "mcp": {"cli/mcp.py"},
    "opentelemetry": {"serve/traces.py"},
    **{
        name: {f"study/trackers/{name}.py"}
        for name in ("mlflow", "tensorboard", "trackio", "wandb")
    },
}
MOST_FUNCTION_LINES = 60


def room_of(path: Path) -> str:
    """The first name below laura: `models` for laura/models/lora.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "laura" if parts[0] == "__init__" else parts[0]


def imports(
    path: Path, late_too: bool = True, types_too: bool = False
) -> Iterator[tuple[str, int]]:
    """Modules a file imports, with lines; within functions and for type checkers as asked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not types_too:
            todo += node.orelse
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not late_too:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            assert node.module
            yield node.module, node.lineno
            if node.module == "laura":
                yield from ((f"laura.{alias.name}", node.lineno) for alias in node.names)
        todo += ast.iter_child_nodes(node)


def ours(path: Path) -> Iterator[tuple[str, int]]:
    """Rooms of Laura that a file imports."""
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "laura" and len(parts) > 1 and parts[1] != "__version__":
            yield parts[1], line


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} <= set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    here = room_of(path)
    floor = FLOORS[here]
    for there, line in ours(path):
        assert there in FLOORS, f"{path}:{line} imports laura.{there}, which has no floor"
        if there == here:
            continue
        assert FLOORS[there] < floor, (
            f"{path}:{line}: {here} (floor {floor}) imports {there} (floor {FLOORS[there]})"
        )


def test_no_circles() -> None:
    """Neither between folders nor within one; late imports and those of types count."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    below = {
        name: {
            found
            for found, _ in imports(path, types_too=True)
            if found in names and found != name and names[found].stem != "__init__"
        }
        for name, path in names.items()
    }
    done: set[str] = set()
    while ready := {name for name, needs in below.items() if name not in done and needs <= done}:
        done |= ready
    circles = {name: sorted(below[name] - done) for name in sorted(below.keys() - done)}
    assert not circles, circles


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.strip("_"), []).append(str(path.relative_to(PACKAGE)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


@pytest.mark.parametrize("room", [room for room, floor in FLOORS.items() if floor < 3])
def test_the_lowest_floor_needs_no_torch(room: str) -> None:
    for path in (p for p in FILES if room_of(p) == room):
        for name, line in imports(path):
            assert name.split(".")[0] not in NO_TORCH, f"{path}:{line} imports {name}"


def test_report_needs_no_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, laura.report as report\n"
        "for found in pkgutil.walk_packages(report.__path__, 'laura.report.'):\n"
        "    importlib.import_module(found.name)\n"
        f"print(sorted(set(sys.modules) & {NO_TORCH!r}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
    for path in (p for p in FILES if room_of(p) == "report"):
        for name, line in imports(path):
            assert name.split(".")[0] not in NO_TORCH, f"{path}:{line} imports {name}"


COMMANDS = [path for path in FILES if room_of(path) == "cli" and path.stem not in OPENED_LATE]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: p.stem)
def test_the_command_line_imports_late(path: Path) -> None:
    for name, line in imports(path, late_too=False):
        parts = name.split(".")
        assert parts[0] not in HEAVY, f"{path}:{line} imports {name} at the top"
        light = parts[1:2] == ["cli"] or parts[1:] in (["results", "errors"], ["__version__"], [])
        assert parts[0] != "laura" or light, f"{path}:{line} imports {name} at the top"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A docstring may be as long as it likes; code may not.
            words = ast.get_docstring(node, clean=False) or ""
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            length -= len(words.splitlines())
            assert length < MOST_FUNCTION_LINES, f"{node.name} has {length} lines of code"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_words(path: Path) -> None:
    """Every module says what it is for, public names have docstrings, nothing prints."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno} prints"
    for name, node in public_definitions(tree):
        assert ast.get_docstring(node), f"{name} (line {node.lineno}) has no docstring"


def public_definitions(
    tree: ast.Module | ast.ClassDef,
) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Public functions, classes and their public methods."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if any(
            "overload" in ast.dump(mark) or "setter" in ast.dump(mark)
            for mark in node.decorator_list
        ):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node)


# Files of the machine, of Laura itself, or that Laura alone writes and just wrote.
READ_AS_THEY_ARE = {
    "cli/doctor.py", "data/corpus.py", "evals/sandbox/driver.py", "evals/sandbox/walls.py",
    "models/device.py", "results/inputs.py", "serve/app.py", "serve/confined.py",
    "study/opening.py", "study/plan/machine.py", "study/search.py",
}  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_files_that_somebody_names_are_read_with_a_bound(path: Path) -> None:
    """Through `results/inputs.py`, which refuses pipes, devices and what has no end."""
    if path.relative_to(PACKAGE).as_posix() in READ_AS_THEY_ARE:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        modes = {one.value for one in node.args if isinstance(one, ast.Constant)} - {None}
        opens = name == "open" or (name.endswith(".open") and modes & {"r", "rb", "rt"})
        reads = name.endswith((".read_text", ".read_bytes")) or name.startswith("gzip.open")
        assert not reads and not opens, f"line {node.lineno}: {name}"


def test_modules_named_as_nouns_not_drawers() -> None:
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert not [path for path in FILES if path.stem in drawers]


def test_every_library_is_declared() -> None:
    """What laura/ imports stands in pyproject.toml, so that a plain install works."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"]
    declared = {line.split(">")[0].lower().replace("-", "_") for line in lines}
    modules = {"ruamel.yaml": "ruamel", "vl_convert_python": "vl_convert"}
    known = {modules.get(name, name) for name in declared} | set(sys.stdlib_module_names)
    for path in FILES:
        for name, line in imports(path):
            top = name.split(".")[0]
            if path.relative_to(PACKAGE).as_posix() in EXTRAS.get(top, ()):
                continue
            assert top in known | {"laura"}, f"{path}:{line} imports {top}, which is not declared"


def test_the_torch_range_takes_builds_with_labels() -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "torch==" not in text and "+cpu" not in text.replace("(`+cpu`", "")
        assert "torch>=2.9,<3" in text


def test_nothing_names_a_workplace() -> None:
    """No absolute path of the machine this was written on, in any text file of ours."""
    suspicious = ["/wor" + "k/", "/hom" + "e/", "/roo" + "t/"]
    folders = ["laura", "tests", "scripts", "benchmarks", "recipes", "docs", ".ci"]
    files = [p for name in folders for p in (ROOT / name).rglob("*") if p.is_file()]
    files += [p for p in ROOT.iterdir() if p.is_file() and p.suffix in {".md", ".toml", ".txt"}]
    for path in files:
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".json", ""}:
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not [word for word in suspicious if word in text], path
