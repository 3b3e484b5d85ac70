"""`laura show` as a person uses it: a pager in a terminal, plain text in a pipe, exit codes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from laura.cli import app as cli
from laura.results.store import StudyStore, write_json
from laura.results.task_result import TaskResult, samples_file, summarise
from tests.cli.terminal import ROOT, Terminal

HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]é \u202e\x9b31m"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of a base and one run, with samples of one task."""
    store = StudyStore(tmp_path / "study")
    record = {"id": "abc123", "arm": "lora", "learning_rate": 1e-3, "seed": 0}
    write_json(store.run("abc123").folder / "run.json", record)
    places = {
        "base": store.base_evaluation,
        "abc123": lambda t: store.run("abc123").evaluation(9, t),
    }
    for model, out in places.items():
        items = [
            {"index": n, "exact_match": int(n % (2 if model == "base" else 3) == 0)}
            for n in range(40)
        ]
        samples = [
            {**item, "prompt": f"ask {item['index']}",
             "text": f"{model} says {item['index']} {HOSTILE}"}
            for item in items
        ]  # fmt: skip
        metrics = {"exact_match": summarise(items, "exact_match", True)}
        TaskResult("gsm8k", "1", model, 40, metrics, items, 1.0).write(out("gsm8k"), samples)
    return store.folder


def run(*arguments: str | Path) -> Result:
    """A command in this process; its output is no terminal."""
    return CliRunner().invoke(cli.app, ["show", *map(str, arguments)])


def in_terminal(*arguments: str | Path, **changes: str) -> tuple[str, int]:
    """What a terminal was sent by a command in it, and the exit code."""
    changes = {"COLUMNS": "100", **changes}
    with Terminal("laura", "show", *map(str, arguments), **changes) as terminal:
        code = terminal.ended()
        return terminal.seen, code


def test_a_pipe_gets_plain_text(study: Path) -> None:
    ended = run(study)
    assert ended.exit_code == 0, ended.stderr
    assert "== item 0: passed ==" in ended.stdout and "== item 1: failed ==" in ended.stdout
    assert (
        not set(ended.stdout) & set("\x1b\x07\u202e\x9b")
        and "\\x1b[2J" in ended.stdout
        and "[red]é" in ended.stdout
    )
    assert run(study, "--failed").stdout.count(": failed ==") == 20
    assert run(study, "--passed", "--limit", "3").stdout.count(": passed ==") == 3
    assert run(study, "--index", "4").stdout.count("== item") == 1
    pair = run(study, "--model", "base", "--model", "lora", "--differ").stdout
    differ = sum((n % 2 == 0) != (n % 3 == 0) for n in range(40))
    assert pair.count("== item") == differ
    answer = json.loads(run(study, "--model", "base,lora", "--differ", "--json").stdout)
    assert answer["matching"] == answer["shown"] == len(answer["items"]) == differ
    assert answer["items"][0]["answers"][1]["row"]["text"].endswith(HOSTILE), "uncut, as it was"
    assert pair.count("\n-- base: ") == pair.count("\n-- abc123/9: ") == differ


def test_mistakes_exit_2_without_traceback(study: Path, tmp_path: Path) -> None:
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    empty.mkdir()
    for name, content in {"cut": b"\x1f\x8b\x08\x00", "line": gzip.compress(b"{\n")}.items():
        file = damaged / name / "gsm8k.json"
        file.parent.mkdir(parents=True)
        file.write_bytes((study / "base/evals/gsm8k.json").read_bytes())
        samples_file(file).write_bytes(content)
    for arguments in (
        [tmp_path / "absent"],
        [empty],
        [damaged / "cut"],
        [damaged / "line"],
        [study, "--task", "gsm8kk"],
        [study, "--model", "lorra"],
        [study, "--model", "base", "--model", "base"],
        [study, "--index", "40"],
        [study, "--index", "-1"],
        [study, "--limit", "0"],
        [study, "--sample", "1"],
        [study, "--failed", "--passed"],
        [study, "--differ"],
        [study, "--forgotten"],
        [study, "--gained", "--forgotten"],
        [],
    ):
        ended = run(*arguments)
        assert ended.exit_code == 2, (arguments, ended.stdout, ended.stderr)
        assert ended.stderr.strip() and "Traceback" not in ended.stderr
        assert ended.stdout == ""
    assert "Did you mean gsm8k?" in run(study, "--task", "gsm8kk").stderr
    error = json.loads(run(study, "--model", "lorra", "--json").stdout)["error"]
    assert error["kind"] == "UsageError" and "Did you mean lora" in error["message"]


def test_names_of_others_control_nothing(study: Path) -> None:
    name = "\x1b[2Jevil\n== item 0: passed =="
    for folder, content in ((name, None), ("damaged" + name, "{")):
        file = study / folder / "gsm8k.json"
        file.parent.mkdir()
        file.write_text(content or (study / "base/evals/gsm8k.json").read_text())
    shown = run(study, "--model", name)
    assert shown.exit_code == 0 and "\n== item 0: passed ==\n-" not in shown.stdout
    refused = run(study, "--model", "damaged" + name)
    assert refused.exit_code == 2 and "\\x1b[2Jevil" in refused.stderr
    overview = run(study, "--model", "absent")
    for ended in (shown, refused, overview):
        assert "\x1b" not in ended.stdout + ended.stderr
    assert "\n== item" not in overview.stderr


def test_a_reader_that_has_enough_is_no_bug(study: Path) -> None:
    items = [{"index": n, "exact_match": n % 2} for n in range(3000)]
    rows = [{**item, "text": "words " * 50} for item in items]
    metrics = {"exact_match": summarise(items, "exact_match", True)}
    result = TaskResult("gsm8k", "1", "base", 3000, metrics, items, 1.0)
    result.write(study / "base/evals/gsm8k.json", rows)
    script = f"{sys.executable} -m laura show {study} | head -n 3; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "0" and ended.stderr == ""


def test_letters_that_the_output_lacks_are_escaped(study: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "laura", "show", str(study), "--index", "0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"[red]\\xe9" in ended.stdout and ended.stderr == b""


@pytest.mark.parametrize(
    "changes",
    [
        {"PAGER": "cat"},
        {"PAGER": ""},
        {"PAGER": "/absent/pager", "PATH": "/absent"},
        {"PAGER": "'open quote", "PATH": "/absent"},
        {"PATH": "/absent"},
    ],
)
def test_without_a_pager_the_terminal_gets_everything(study: Path, changes: Any) -> None:
    seen, code = in_terminal(study, "--model", "base,lora", "--limit", "2", **changes)
    assert code == 0, seen
    assert "item 0" in seen and "item 1" in seen and "Traceback" not in seen
    (line,) = [line for line in seen.splitlines() if "base says 0" in line]
    assert "abc123 says 0" in line, "the answers stand side by side"
    assert "\x1b[31m" in seen or "\x1b[1;31m" in seen, "a failure is red"
    assert "\x1b[2J" not in seen and "\x07" not in seen and "\\x1b[2J" in seen


def test_the_users_pager_reads_plain_text(study: Path, tmp_path: Path) -> None:
    caught = tmp_path / "caught"
    pager = (
        f'{sys.executable} -c \'import sys; open("{caught}", "wb").write(sys.stdin.buffer.read())\''
    )
    seen, code = in_terminal(study, PAGER=pager)
    assert code == 0 and "item" not in seen, seen
    text = caught.read_text("utf-8")
    assert "item 39: " in text and "é" in text and "\x1b" not in text
    seen, code = in_terminal(study, PAGER="true")
    assert code == 0 and "Traceback" not in seen and "error" not in seen, "it may end early"
    seen, code = in_terminal(study, "--no-pager", PAGER="false")
    assert code == 0 and "item 39: " in seen


@pytest.mark.skipif(not os.path.exists("/usr/bin/less"), reason="less is not installed")
def test_less_pages_and_is_left_with_q(study: Path) -> None:
    with Terminal("laura", "show", str(study)) as terminal:
        terminal.wait_for("item 0: ")
        terminal.type("q")
        assert terminal.ended() == 0
        assert "item 39" not in terminal.seen, "only the first screen was drawn"
        assert "ESC[" not in terminal.seen and "\\x1b[2J" in terminal.seen
