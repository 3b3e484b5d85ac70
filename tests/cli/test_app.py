"""The command line: help costs nothing, every ending has its exit code, answers have one place."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

import laura
from laura.api import Evaluation, Training
from laura.cli import app as cli
from laura.cli import console, doctor
from laura.cli.study import DEFAULT_RECIPE
from laura.recipe import shipped
from laura.results.errors import DataError, RecipeError, UsageError
from laura.results.schema import Summary
from laura.results.store import write_json

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "init compare watch train track evaluate claims recommend gate remedy plan report show spectra "
    "chat serve mcp merge sign push fetch doctor schema"
).split()
RECIPE = """\
name: tiny
base: {model: somewhere}
data: {train: a.jsonl, test: b.jsonl, source_text: c.jsonl}
budget: {epochs: [1]}
arms:
  lora: {method: lora}
"""
RUN = {"id": "a1", "arm": "lora", "learning_rate": 1e-3, "seed": 0, "state": "done"}
SUMMARY: dict[str, Any] = {
    "format": 2,
    "name": "tiny",
    "base": {"model": "m", "fingerprint": "f"},
    "measure": {"learning": [], "forgetting": []},
    "tasks": {},
    "budget": {"unit": "epochs", "points": [1]},
    "arms": [],
    "runs": [{**RUN, "loss_curve": [[1, 2.0]] * 100}],
    "points": [],
}
JUDGED = {"format": 2, "answer": "Take LoRA: it forgets less.", "sentences": ["By a lot."]}


def run(*arguments: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(cli.app, list(arguments))


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    """A whole recipe whose data need not exist."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study that was judged."""
    write_json(tmp_path / "study" / "summary.json", SUMMARY)
    write_json(tmp_path / "study" / "claims.json", JUDGED)
    return tmp_path / "study"


Asked = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], Asked]:
    """Answers in the place of a function; gives what it is asked."""

    def put(name: str, answer: Any) -> Asked:
        asked: Asked = []

        def function(*words: Any, **named: Any) -> Any:
            asked.append((words, named))
            return answer

        monkeypatch.setattr(name, function)
        return asked

    return put


def test_help_imports_nothing_heavy() -> None:
    for words in (["--help"], ["show", "--help"], ["tenants", "add", "--help"]):
        ended = python(
            "import sys\n"
            "from laura.cli.app import main\n"
            f"sys.argv = ['laura', *{words}]\n"
            "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
            # pydantic is typer's own, which asks it for the kinds of a command's options.
            "heavy = 'torch transformers altair datasets numpy ruamel rich gguf click'.split()\n"
            f"heavy += ['pydantic', 'laura.api', 'laura.report'][{len(words) > 1}:]\n"
            "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
        )
        assert ended.stderr.strip() == "[]", words
    assert all(command in run("--help").stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str) -> None:
    ended = run(command, "--help")
    assert ended.exit_code == 0
    example = ended.stdout[ended.stdout.index("Example:") :]
    assert f"laura {command}" in example and "--json" in ended.stdout


def test_every_command_is_listed_and_its_options_have_help() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert list(commands) == [*COMMANDS, "tenants"]
    below = commands.pop("tenants").commands
    every = {**commands, **below, **below.pop("key").commands}
    assert not [(name, one.name) for name, c in every.items() for one in c.params if not one.help]
    assert run("--version").stdout.strip() == f"laura {laura.__version__}"
    assert DEFAULT_RECIPE in shipped.shipped_recipes()


def test_compare_hands_everything_on(
    study: Path, instead: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = instead("laura.compare", laura.read_study(study))
    ended = run(
        *("compare", "mine.yaml", "--set", "train.clip=null", "--set", "seeds=[7]"),
        *("--data-dir", str(tmp_path), "--out", "out", "--device", "cpu", "--setting", "code"),
        *("--workers", "2", "--ray", "auto", "--confirm", "lora@1e-3"),
    )
    assert ended.exit_code == 0, ended.stderr
    assert JUDGED["answer"] in ended.stdout and "Report: " in ended.stdout
    [(words, named)] = asked
    assert words == () and named.pop("progress")
    assert named == {
        "recipe": "mine.yaml",
        "overrides": ["train.clip=null", "seeds=[7]"], "setting": "code", "device": "cpu",
        "data_dir": tmp_path, "out": Path("out"), "workers": 2,
        "ray": "auto", "track": None, "confirm": ["lora@1e-3"], "confirm_seeds": 3,
    }  # fmt: skip
    monkeypatch.setenv("LAURA_DATA", str(tmp_path))
    assert run("compare").exit_code == 0
    _, named = asked[-1]
    assert named["recipe"] == DEFAULT_RECIPE
    assert (named["data_dir"], named["out"], named["workers"]) == (tmp_path, None, None)


def test_the_report_in_two_formats_and_one_object_as_answer(study: Path) -> None:
    for form in ("html", "md"):
        ended = run("report", str(study), "--format", form, "--json")
        answer = json.loads(ended.stdout)
        assert (
            answer["report"] == str(study / f"report.{form}") and Path(answer["report"]).is_file()
        )
    [known] = answer["runs"]
    assert known.items() >= RUN.items() and "loss_curve" not in known, "they are in summary.json"
    refused = run("report", str(study), "--format", "pdf")
    assert refused.exit_code == 2 and "html" in refused.stderr


def test_a_study_of_an_older_format_is_one_line(tmp_path: Path) -> None:
    study = tmp_path / "old"
    (study / "runs").mkdir(parents=True)
    for name in ("recipe.yaml", "study.json"):
        (study / name).write_text(RECIPE if name == "recipe.yaml" else "{}")
    for name in ("summary.json", "analysis.json", "claims.json"):
        write_json(study / name, {"format": 1})
    before = {path: path.read_bytes() for path in study.iterdir() if path.is_file()}
    for command in (
        ("report",), ("claims",), ("recommend", "--max-forgetting", "0.02"),
        ("gate", "--max-forgetting", "0.02"),
    ):  # fmt: skip
        ended = run(command[0], str(study), *command[1:])
        assert ended.exit_code == 2, (command, ended.stderr)
        told = ended.stderr.strip()
        assert "older format" in told and "laura compare" in told, told
        assert len(told.splitlines()) == 1 and "Traceback" not in told
    assert before == {path: path.read_bytes() for path in study.iterdir() if path.is_file()}


def test_train_evaluate_merge_and_fetch(instead: Any, tmp_path: Path) -> None:
    known = {"id": "a1", "state": "done", "folder": "runs/a1", "checkpoints": []}
    asked = instead("laura.train", Training(runs=[known], summary=Summary(**SUMMARY)))
    ended = run("train", "x", "--arm", "lora", "--learning-rate", "3e-4", "--seed", "2")
    assert ended.exit_code == 0 and "a1: done, in runs/a1" in ended.stdout, ended.stderr
    [(_, named)] = asked
    assert (named["recipe"], named["arm"]) == ("x", "lora")
    assert (named["learning_rate"], named["seed"]) == (3e-4, 2)
    assert json.loads(run("train", "x", "--arm", "lora", "--json").stdout)["runs"] == [known]

    metric = {"value": 0.25, "stderr": 0.01, "higher_is_better": True}
    change = {"change": {"value": 0.1, "stderr": 0.02, "interval": [0.0, 0.2]}}
    scored = {"gsm8k": {"file": "x", "n": 10, "metrics": {"exact_match": metric}}}
    tuned = {"gsm8k": {"file": "y", "n": 10, "metrics": {"exact_match": {**metric, **change}}}}
    asked = instead("laura.evaluate", Evaluation(models={"base": scored, "a": tuned}))
    words = ("evaluate", "somewhere", "--tasks", "gsm8k, hellaswag", "--limit", "10")
    ended = run(*words, "--out", str(tmp_path), "--set", "measure.gsm8k_shots=0")
    assert ended.exit_code == 0 and "0.2500 ± 0.0100  (n=10)" in ended.stdout, ended.stderr
    [(_, named)] = asked
    assert (named["model"], named["tasks"]) == ("somewhere", ["gsm8k", "hellaswag"])
    assert (named["limit"], named["overrides"]) == (10, ["measure.gsm8k_shots=0"])
    assert json.loads(run(*words, "--json").stdout) == scored
    many = run(*words, "--adapter", f"a={tmp_path}").stdout
    assert "base\n  gsm8k" in many and "+0.1000 ± 0.0200, 95% +0.0000 to +0.2000" in many
    told = json.loads(run(*words, "--adapter", f"a={tmp_path}", "--json").stdout)
    assert told == {"base": scored, "a": tuned}

    instead("laura.study.workbench.merge_adapter", {"merged": 1e-7, "folder": "m"})
    assert run("merge", "base", str(tmp_path), "m").stdout == "merged: 1e-07\nfolder: m\n"
    instead("laura.models.fetch.fetch", Path("cache/x"))
    assert json.loads(run("fetch", "x", "--json").stdout) == {"name": "x", "folder": "cache/x"}


def test_spectra_hands_everything_on(instead: Any, tmp_path: Path, tiny_folder: Path) -> None:
    refused = run("spectra", "micro", str(tiny_folder), "--out", str(tmp_path / "x.json"))
    assert refused.exit_code == 2
    assert "was not made from" in refused.stderr and "Traceback" not in refused.stderr
    asked = instead("laura.analysis.comparison.compare_weights", {"matrices": []})
    instead("laura.report.tables.spectra_tables", "TABLE")
    out = str(tmp_path / "found.json")
    ended = run(
        "spectra", "micro", "tuned", "--out", out, "--intruders", "--k", "5", "--eps", "0.4"
    )
    assert ended.exit_code == 0, ended.stderr
    assert "TABLE" in ended.stdout and out in ended.stderr
    [(words, named)] = asked
    assert words == ("micro", "tuned") and str(named["out"]) == out
    wanted = named["wanted"]
    assert (wanted.intruders, wanted.k, wanted.eps) == (True, 5, 0.4)
    assert json.loads(run("spectra", "micro", "tuned", "--json").stdout) == {"matrices": []}


def test_mistakes_exit_2_without_traceback(recipe_file: str) -> None:
    for arguments in (
        ["compare", recipe_file, "--set", "train.clip=no"],
        ["compare", "no-such-recipe"],
        ["compare", "absent.yaml"],
        ["compare", recipe_file, "--data-dir", "absent"],
        ["compare", recipe_file, "--unknown"],
        ["compare", recipe_file, "--setting", "x"],
        ["compare", recipe_file, "--confirm", "lora"],
        ["train", recipe_file],
        ["evaluate", "x", "--tasks", ","],
        ["evaluate", "x", "--tasks", "gsm8k,gsm8k"],
        ["evaluate", "x", "--tasks", "gsm8k", "--limit", "0"],
        ["evaluate", "x", "--tasks", "gsm8k", "--set", "train.clip=1"],
        ["evaluate", "x", "--tasks", "gsm8k", "--preset", "papre"],
        ["plan"],
        ["plan", "--table", "many"],
        ["report", "absent"],
        ["claims", "absent", "absent"],
        ["nonsense"],
    ):
        ended = run(*arguments)
        assert ended.exit_code == 2, (arguments, ended.stdout, ended.stderr)
        assert ended.stderr.strip() and "Traceback" not in ended.stderr
        assert ended.stdout == ""


def test_a_mistake_as_json(recipe_file: str) -> None:
    ended = run("compare", recipe_file, "--json", "--set", "train.clip=no", "--set", "seeds=[]")
    assert ended.exit_code == 2
    error = json.loads(ended.stdout)["error"]
    assert (error["kind"], error["bug"]) == ("RecipeError", False)
    assert [fault["path"] for fault in error["faults"]] == ["train.clip", "seeds"]
    assert "train.clip" in ended.stderr


def test_a_bug_exits_1_and_asks_for_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*words: Any, **named: Any) -> None:
        raise KeyError("oh")

    monkeypatch.setattr("laura.compare", compare)
    ended = run("compare", "x", "--json")
    assert ended.exit_code == 1
    assert "Traceback" in ended.stderr and "bug in Laura" in ended.stderr
    assert json.loads(ended.stdout)["error"]["bug"] is True


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DataError("no rows"), "no rows"),
        (UsageError("no such arm"), "no such arm"),
        (RecipeError([]), "0 mistakes"),
        (OSError(28, "No space left on device", "x"), "disk is full"),
        (PermissionError(13, "Permission denied", "x"), "no permission for x"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "out of memory"),
    ],
)
def test_what_users_can_mend(error: Exception, words: str) -> None:
    message = console.mistake(error)
    assert message is not None and words in message
    for ours in (KeyError("x"), RuntimeError("x"), OSError(2, "x"), ValueError()):
        assert console.mistake(ours) is None


def test_interrupting_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*words: Any, progress: Any, **named: Any) -> None:
        with progress.bar("work", 10, "items") as bar:
            bar.advance()
            raise KeyboardInterrupt

    monkeypatch.setattr("laura.compare", compare)
    ended = run("compare", "x")
    assert ended.exit_code == 130
    assert ended.stderr.strip() == "stopped; the same command continues"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_politely(number: signal.Signals) -> None:
    ended = python(
        "import os, signal, sys, time, laura\n"
        # A job in the background inherits that interrupts are ignored, and so would this one.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from laura.cli.app import main\n"
        "def compare(*words, **named):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    time.sleep(60)\n"
        "laura.compare = compare\n"
        "sys.argv = ['laura', 'compare', 'x']\n"
        "main()\n"
    )
    assert ended.returncode == 130, ended.stderr
    assert "stopped; the same command continues" in ended.stderr


def test_schema_is_what_editors_need() -> None:
    text = run("schema").stdout
    recipe, series = json.loads(text)["anyOf"]
    assert recipe["properties"]["arms"] and series["properties"]["settings"]
    assert json.loads(run("schema", "--json").stdout) == json.loads(text)


def test_recipes_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "paper").mkdir()
    for name in ("smollm2-demo", "paper/math"):
        (tmp_path / f"{name}.yaml").write_text(RECIPE)
    monkeypatch.setattr(shipped, "_FOLDERS", (tmp_path / "absent", tmp_path))
    assert shipped.find_recipe("smollm2-demo") == tmp_path / "smollm2-demo.yaml"
    assert shipped.find_recipe("paper/math") == tmp_path / "paper" / "math.yaml"
    assert shipped.find_recipe("other/mine.yaml") == Path("other/mine.yaml")
    with pytest.raises(UsageError, match=r"did you mean smollm2-demo\?.*paper/math"):
        shipped.find_recipe("smollm-demo")
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text(RECIPE)
    assert shipped.find_recipe("mine") == Path("mine")


def test_doctor_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAURA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAURA_DATA", raising=False)
    ended = run("doctor", "--json")
    answer = json.loads(ended.stdout)
    found = {finding["name"]: finding for finding in answer["findings"]}
    assert ended.exit_code == 0 and answer["usable"] is True
    expected = {"python", "libraries", "devices", "bf16 arithmetic", "cores", "memory", "disk"}
    expected |= {"cache", "data", "sandbox", "extra lm-eval", "extra ray", "gpu paths"}
    assert expected == set(found)
    if not torch.cuda.is_available():
        assert found["gpu paths"]["found"].startswith("without documents in one kernel")
    assert "--data-dir" in found["data"]["advice"]
    assert "laura fetch" in found["cache"]["advice"]
    assert not (tmp_path / "cache").exists(), "the doctor changes nothing"


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ("no-such-library",))
    monkeypatch.setenv("HF_ENDPOINT", "ftp://nowhere")
    findings = {found.name: found for found in doctor.examine(tmp_path / "absent", network=True)}
    assert findings["libraries"].advice == "python -m pip install no-such-library"
    assert findings["data"].state == "missing"
    assert "HF_ENDPOINT" in findings["hub"].advice
    ended = run("doctor")
    assert ended.exit_code == 2
    assert "MISSING  libraries" in ended.stdout and "-> python -m pip install" in ended.stdout
