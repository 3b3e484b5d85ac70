"""The door: help costs nothing, every ending has its exit code, answers go where they belong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import laura
from laura.cli import app as cli
from laura.cli import console
from laura.recipe import shipped
from laura.recipe.sections import MeasureSection, Recipe
from laura.results.errors import DataError, RecipeError, UsageError
from laura.results.schema import Summary
from laura.results.store import write_json

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "compare train evaluate spectra claims recommend gate report show chat merge fetch doctor "
    "schema"
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


def run_apart(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "laura", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    """A whole recipe whose data need not exist."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a function in the place of one that a command imports late."""

    def put(module: str, name: str, function: Any) -> None:
        fake = sys.modules.get(module) or types.ModuleType(module)
        if getattr(fake, "__file__", None):
            fake = types.ModuleType(module)
        setattr(fake, name, function)
        monkeypatch.setitem(sys.modules, module, fake)

    return put


@pytest.fixture
def calls(stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the study and the report were asked to do, in place of doing it."""
    seen: list[dict[str, Any]] = []
    monkeypatch.chdir(tmp_path)

    def compare(recipe: Recipe, **asked: Any) -> None:
        seen.append({"recipe": recipe, **asked})
        write_json(asked["study"] / "summary.json", SUMMARY)
        write_json(asked["study"] / "claims.json", JUDGED)

    def write_report(study: Path, progress: Any = None, form: str = "html") -> Path:
        return study / f"report.{form}"

    stand_in("laura.study.compare", "compare", compare)
    stand_in("laura.report.html", "write_report", write_report)
    stand_in("laura.report.tables", "summary_table", lambda study: f"TABLE {study.answer}")
    return seen


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from laura import cli\n"
        "sys.argv = ['laura', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy = 'torch transformers pydantic altair datasets numpy yaml rich gguf peft'.split()\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stderr.strip() == "[]"
    assert all(command in ended.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str) -> None:
    ended = run(command, "--help")
    assert ended.exit_code == 0
    example = ended.stdout[ended.stdout.index("Example:") :]
    assert f"laura {command}" in example
    assert "--json" in ended.stdout or command == "schema"


def test_version() -> None:
    assert run("--version").stdout.strip() == f"laura {laura.__version__}"


def test_compare_hands_everything_on(
    calls: list[dict[str, Any]], recipe_file: str, tmp_path: Path
) -> None:
    ended = run(
        *("compare", recipe_file, "--set", "train.clip=null", "--set", "seeds=[7]"),
        *("--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"),
    )
    assert ended.exit_code == 0, ended.stderr
    (asked,) = calls
    assert asked["recipe"].train.clip is None and asked["recipe"].seeds == [7]
    assert asked["study"] == tmp_path / "out"
    assert (asked["data_dir"], asked["device"]) == (tmp_path, "cpu")
    assert f"TABLE {JUDGED['answer']}" in ended.stdout and "report.html" in ended.stdout


def test_defaults_and_environment(
    calls: list[dict[str, Any]], recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAURA_DATA", str(tmp_path))
    assert run("compare", recipe_file).exit_code == 0
    monkeypatch.delenv("LAURA_DATA")
    assert run("compare", recipe_file).exit_code == 0
    assert [asked["data_dir"] for asked in calls] == [tmp_path, None]
    assert calls[0]["study"] == Path("studies/tiny")


def test_json_is_one_object_on_standard_output(
    calls: list[dict[str, Any]], recipe_file: str
) -> None:
    ended = run("compare", recipe_file, "--json")
    answer = json.loads(ended.stdout)
    assert answer["judgement"]["answer"] == JUDGED["answer"]
    assert answer["report"].endswith("report.html")
    [known] = answer["runs"]
    assert known.items() >= RUN.items() and "loss_curve" not in known, "they are in summary.json"


def test_a_study_of_an_older_format_is_one_line(
    recipe_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_the_report_comes_in_two_formats(calls: list[dict[str, Any]], recipe_file: str) -> None:
    run("compare", recipe_file)
    for form in ("html", "md"):
        ended = run("report", "studies/tiny", "--format", form, "--json")
        assert json.loads(ended.stdout)["report"].endswith(f"report.{form}")
    refused = run("report", "studies/tiny", "--format", "pdf")
    assert refused.exit_code == 2 and "html" in refused.stderr


def test_train_and_evaluate_and_merge_and_fetch(
    stand_in: Any, recipe_file: str, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def train(recipe: Recipe, **asked: Any) -> dict[str, Any]:
        seen.update(asked)
        runs = [{"id": "a1", "state": "done", "folder": "runs/a1"}]
        return {"runs": runs, "summary": Summary.model_validate(SUMMARY)}

    def evaluate_model(model: str, **asked: Any) -> dict[str, Any]:
        seen.update(asked)
        metric = {"value": 0.25, "stderr": 0.01, "higher_is_better": True}
        return {"gsm8k": {"file": "x", "n": 10, "metrics": {"exact_match": metric}}}

    stand_in("laura.study.single", "train", train)
    ended = run("train", recipe_file, "--arm", "lora", "--learning-rate", "3e-4", "--seed", "2")
    assert ended.exit_code == 0, ended.stderr
    assert (seen["arm"], seen["learning_rate"], seen["seed"]) == ("lora", 3e-4, 2)
    assert "a1: done" in ended.stdout

    stand_in("laura.study.evaluation", "evaluate_model", evaluate_model)
    ended = run(
        *("evaluate", "somewhere", "--tasks", "gsm8k, hellaswag", "--limit", "10"),
        *("--out", str(tmp_path), "--set", "measure.gsm8k_shots=0"),
    )
    assert ended.exit_code == 0, ended.stderr
    assert seen["tasks"] == ["gsm8k", "hellaswag"]
    section: MeasureSection = seen["section"]
    assert (section.limit, section.gsm8k_shots) == (10, 0)
    assert "0.2500 ± 0.0100" in ended.stdout
    run("evaluate", "somewhere", "--tasks", "gsm8k")
    assert seen["section"].limit is None, "without --limit, all items are measured"

    stand_in(
        "laura.study.merging", "merge_adapter", lambda *a, **k: {"merged": 1e-7, "folder": "m"}
    )
    ended = run("merge", "base", str(tmp_path), str(tmp_path / "merged"))
    assert "merged: 1e-07" in ended.stdout, ended.stderr
    stand_in("laura.models.fetch", "fetch", lambda name, progress: Path("cache") / name)
    assert json.loads(run("fetch", "x", "--json").stdout) == {"name": "x", "folder": "cache/x"}


def test_mistakes_exit_2_without_traceback(recipe_file: str) -> None:
    for arguments in (
        ["compare", recipe_file, "--set", "train.clip=no"],
        ["compare", "no-such-recipe"],
        ["compare", "absent.yaml"],
        ["compare", recipe_file, "--data-dir", "absent"],
        ["compare", recipe_file, "--unknown"],
        ["train", recipe_file],
        ["evaluate", "x", "--tasks", ","],
        ["evaluate", "x", "--tasks", "gsm8k,gsm8k"],
        ["evaluate", "x", "--tasks", "gsm8k", "--limit", "0"],
        ["evaluate", "x", "--tasks", "gsm8k", "--set", "train.clip=1"],
        ["report", "absent"],
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


def test_a_bug_exits_1_and_asks_for_a_report(stand_in: Any) -> None:
    def fetch(name: str, progress: Any) -> Path:
        raise KeyError("oh")

    stand_in("laura.models.fetch", "fetch", fetch)
    ended = run("fetch", "x", "--json")
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


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), OSError(2, "x"), ValueError()])
def test_what_only_we_can_mend(error: Exception) -> None:
    assert console.mistake(error) is None


def test_interrupting_exits_130(stand_in: Any) -> None:
    def fetch(name: str, progress: Any) -> Path:
        with progress.bar("work", 10, "items") as bar:
            bar.advance()
            raise KeyboardInterrupt

    stand_in("laura.models.fetch", "fetch", fetch)
    ended = run("fetch", "x")
    assert ended.exit_code == 130
    assert ended.stderr.strip() == "stopped; the same command continues"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_politely(number: signal.Signals) -> None:
    code = (
        "import os, signal, sys, time, types\n"
        # A job in the background inherits that interrupts are ignored, and so would this one.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from laura import cli\n"
        "fake = types.ModuleType('laura.models.fetch')\n"
        "def fetch(name, progress):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    time.sleep(60)\n"
        "fake.fetch = fetch\n"
        "sys.modules['laura.models.fetch'] = fake\n"
        "sys.argv = ['laura', 'fetch', 'x']\n"
        "cli.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 130, ended.stderr
    assert "stopped; the same command continues" in ended.stderr


def test_a_reader_that_has_enough_is_no_bug() -> None:
    script = f"{sys.executable} -m laura schema | head -c 10"
    ended = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in ended.stderr and "bug" not in ended.stderr


def test_schema_is_what_editors_need() -> None:
    ended = run_apart("schema")
    assert ended.returncode == 0
    recipe, series = json.loads(ended.stdout)["anyOf"]
    assert recipe["properties"]["arms"] and series["properties"]["settings"]


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


def test_the_default_recipe_is_shipped() -> None:
    assert cli.DEFAULT_RECIPE in shipped.shipped_recipes()


def test_doctor_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAURA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAURA_DATA", raising=False)
    ended = run("doctor", "--json")
    answer = json.loads(ended.stdout)
    found = {finding["name"]: finding for finding in answer["findings"]}
    assert ended.exit_code == 0 and answer["usable"] is True
    expected = {"python", "libraries", "devices", "bf16 arithmetic", "cores", "memory", "disk"}
    assert expected | {"cache", "data", "sandbox", "extra lm-eval"} == set(found)
    assert "--data-dir" in found["data"]["advice"]
    assert "laura fetch" in found["cache"]["advice"]
    assert not (tmp_path / "cache").exists(), "the doctor changes nothing"
    text = run("doctor").stdout
    assert "limited" in text and "-> " in text


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from laura.cli import doctor

    monkeypatch.setattr(doctor, "LIBRARIES", ("no-such-library",))
    monkeypatch.setenv("HF_ENDPOINT", "ftp://nowhere")
    findings = {found.name: found for found in doctor.examine(tmp_path / "absent", network=True)}
    assert findings["libraries"].advice == "python -m pip install no-such-library"
    assert findings["data"].state == "missing"
    assert "HF_ENDPOINT" in findings["hub"].advice
    assert run("doctor").exit_code == 2


def test_quiet_libraries_leaves_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    console._quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"


def test_spectra_hands_everything_on(stand_in: Any, tmp_path: Path) -> None:
    seen: list[Any] = []

    def compare_weights(base: str, tuned: str, **asked: Any) -> dict[str, Any]:
        seen.append((base, tuned, asked))
        return {"matrices": []}

    stand_in("laura.analysis.comparison", "compare_weights", compare_weights)
    stand_in("laura.report.tables", "spectra_tables", lambda answer: "TABLE")
    out = str(tmp_path / "found.json")
    ended = run(
        "spectra", "micro", "tuned", "--out", out, "--intruders", "--k", "5", "--eps", "0.4"
    )
    assert ended.exit_code == 0, ended.stderr
    assert "TABLE" in ended.stdout and out in ended.stderr
    ((base, tuned, asked),) = seen
    assert (base, tuned, str(asked["out"])) == ("micro", "tuned", out)
    wanted = asked["wanted"]
    assert (wanted.intruders, wanted.k, wanted.eps) == (True, 5, 0.4)
    assert json.loads(run("spectra", "micro", "tuned", "--json").stdout) == {"matrices": []}
    assert seen[-1][2]["wanted"].intruders is False


def test_spectra_of_another_base_end_in_a_line(tiny_folder: Path, tmp_path: Path) -> None:
    ended = run("spectra", "micro", str(tiny_folder), "--out", str(tmp_path / "x.json"))
    assert ended.exit_code == 2
    assert "was not made from" in ended.stderr and "Traceback" not in ended.stderr
