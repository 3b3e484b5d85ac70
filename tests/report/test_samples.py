"""Kept samples: found, named, filtered, paired and shown, against a naive reading."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from laura.report.samples.find import SampleFilter, choose_models, find_results, models_of, verdict
from laura.report.samples.show import Overview, View, open_view
from laura.report.samples.text import (
    LINES_LEFT,
    answer_text,
    choice_texts,
    drawn,
    page,
    plain_lines,
    question_text,
)
from laura.report.visible import visible, visible_json, visible_line
from laura.results.errors import StoreError, UsageError
from laura.results.store import StudyStore, write_json
from laura.results.task_result import TaskResult, samples_file, summarise

Row = dict[str, Any]
RUNS = {"aaaa11112222": ("lora", 3e-4, 0), "aabb33334444": ("full", 1e-5, 1)}
FEWSHOT = "".join(f"Question: worked {n}\nAnswer: #### {n}\n\n" for n in range(20))


def put(path: Path, items: list[Row], samples: list[Row], metrics: list[str], model: str) -> None:
    """A result with its samples, as the runner writes them."""
    scores = {name: summarise(items, name, True) for name in metrics}
    result = TaskResult(path.stem, "1", model, len(items), scores, items, 1.0)
    result.write(path, samples)


def math_rows(seed: int, count: int = 30) -> tuple[list[Row], list[Row]]:
    """Items and samples like those of GSM8K, right and wrong at random."""
    chance = random.Random(seed)
    items, samples = [], []
    for index in range(count):
        right = chance.random() < 0.4
        item = {"index": index, "correct": right, "exact_match": int(right), "finish": "stop"}
        item["tokens"] = chance.randrange(9, 60)
        texts = {
            "prompt": f"{FEWSHOT}Question: number {index}?\nAnswer:", "target": f"#### {index}",
            "text": f"by {seed}: {index} apples #### {index}",
            "strict": str(index if right else index + 1),
        }  # fmt: skip
        items.append(item)
        samples.append({**item, **texts})
    return items, samples


def code_rows(seed: int, per_item: int) -> tuple[list[Row], list[Row]]:
    """Items and samples of a code task with several samples an item."""
    chance = random.Random(seed)
    items, samples = [], []
    for index in range(8):
        marks = [chance.random() < 0.5 for _ in range(per_item)]
        items.append({"index": index, "pass@1": sum(marks) / per_item})
        samples += [
            {"index": index, "sample": number, "prompt": f"def f{index}():\n", "passed": mark,
             "text": f"    return {number}", "fault": "" if mark else "AssertionError",
             "program": f"def f{index}():\n    return {number}\nassert f{index}()"}
            for number, mark in enumerate(marks)
        ]  # fmt: skip
    return items, samples


def loss_items(shift: float) -> list[Row]:
    """Items of a held-out loss."""
    return [
        {"index": n, "nats": 10.0 + n + shift, "tokens": 4 + n, "bytes": 20 + n} for n in range(6)
    ]


def choice_items() -> list[Row]:
    """Items of a choice task as they are without texts."""
    return [
        {"index": n, "correct": n % 2 == 0, "gold": 1, "acc": int(n % 2 == 0),
         "loglikelihoods": [-9.0, -4.0 if n % 2 == 0 else -12.0], "choice_characters": [6, 3]}
        for n in range(4)
    ]  # fmt: skip


@pytest.fixture
def study(tmp_path: Path, written: Path) -> Path:
    """The study, to be changed."""
    return Path(shutil.copytree(written, tmp_path / "study"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study: a base and two runs, of which one was measured twice."""
    store = StudyStore(tmp_path_factory.mktemp("written") / "study")
    places = [("base", store.base_evaluation, 0)]
    for number, (run, (arm, learning_rate, seed)) in enumerate(RUNS.items(), 1):
        record = {"id": run, "arm": arm, "learning_rate": learning_rate, "seed": seed}
        write_json(store.run(run).folder / "run.json", record)
        for step in (20, 100) if number == 1 else (100,):
            places.append(
                (run, lambda t, r=run, s=step: store.run(r).evaluation(s, t), step + number)
            )
    for model, out, salt in places:
        put(out("gsm8k"), *math_rows(salt), ["exact_match"], model)
        put(out("humaneval"), *code_rows(salt, 3 if salt else 1), ["pass@1"], model)
        put(out("source_loss"), loss_items(salt / 10), [], ["nats_per_token"], model)
        put(out("winogrande"), choice_items(), [], ["acc"], model)
    return store.folder


def naive(path: Path) -> list[Row]:
    """The samples beside a TASK.json, read the short way."""
    file = path.parent / path.name.replace(".json", ".samples.jsonl.gz")
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def view(folder: Path, *given: Any, **wanted: Any) -> View:
    """What is shown, and not an overview."""
    found = open_view(folder, *given, wanted=SampleFilter(**wanted))
    assert isinstance(found, View)
    return found


def rows_of(shown: View, place: int = 0) -> list[Row]:
    """The samples of one of the models, as JSON has them."""
    return [item["answers"][place]["row"] for item in shown.to_json()["items"]]


def test_listing_equals_a_naive_reading(study: Path) -> None:
    expected = naive(study / "base/evals/gsm8k.json")
    assert rows_of(view(study, "gsm8k")) == expected
    wrong = [row for row in expected if not row["correct"]]
    right = [row for row in expected if row["correct"]]
    assert wrong and right
    assert rows_of(view(study, "gsm8k", outcome="failed")) == wrong
    assert rows_of(view(study, "gsm8k", outcome="passed")) == right
    assert rows_of(view(study, "gsm8k", outcome="failed", limit=3)) == wrong[:3]
    assert rows_of(view(study, "gsm8k", index=7)) == [expected[7]]
    text = "\n".join(view(study, "gsm8k", outcome="failed").lines())
    shown = re.findall(r"^== item (\d+): failed ==$", text, re.MULTILINE)
    assert [int(index) for index in shown] == [row["index"] for row in wrong]
    assert f"{len(wrong)} of {len(expected)} failed" in text
    for row in wrong:
        assert f"Output: {row['text']}" in text and f"strict: {row['strict']}" in text


def test_two_models_side_by_side(study: Path) -> None:
    files = [study / "base/evals/gsm8k.json", study / "runs/aaaa11112222/evals/00000100/gsm8k.json"]
    one, other = (naive(path) for path in files)
    pairs = list(zip(one, other, strict=True))
    for outcome, wanted in {
        "differ": lambda a, b: a != b,
        "forgotten": lambda a, b: a and not b,
        "gained": lambda a, b: b and not a,
        "failed": lambda a, b: not (a and b),
        "passed": lambda a, b: a and b,
        "any": lambda a, b: True,
    }.items():
        expected = [(a, b) for a, b in pairs if wanted(a["correct"], b["correct"])]
        assert expected
        shown = view(study, "gsm8k", ["base", "lora"], outcome=outcome)
        assert list(zip(rows_of(shown), rows_of(shown, 1), strict=True)) == expected
    lines = list(view(study, "gsm8k", ["base,lora"], index=3).lines())
    assert sum("Question: number 3?" in line for line in lines) == 1, "the question stands once"
    for name, row in (("base", one[3]), ("aaaa11112222/100", other[3])):
        word = "passed" if row["correct"] else "failed"
        assert f"-- {name}: {word} --" in lines
        assert f"Output: {row['text']}" in lines
    only = sum(a["correct"] and not b["correct"] for a, b in pairs)
    assert any(f"only base {only}," in line for line in lines)


def test_files_in_another_order_are_paired_by_item(study: Path) -> None:
    path = study / "runs/aaaa11112222/evals/00000100/gsm8k.json"
    items, samples = math_rows(101)
    put(path, items, samples[::-1], ["exact_match"], "lora")
    shown = view(study, "gsm8k", ["base", "lora"])
    assert [row["index"] for row in rows_of(shown, 1)] == list(range(30))
    assert rows_of(shown, 1) == samples


def test_several_samples_an_item(study: Path) -> None:
    path = study / "runs/aabb33334444/evals/00000100/humaneval.json"
    expected = naive(path)
    assert rows_of(view(study, "humaneval", ["full"], sample=2)) == expected[2::3]
    shown = view(study, "humaneval", ["full"], index=5, outcome="failed")
    wrong = [row for row in expected if row["index"] == 5 and not row["passed"]]
    assert wrong and rows_of(shown) == wrong
    text = "\n".join(shown.lines())
    assert f"== item 5, sample {wrong[0]['sample']}: failed ==" in text
    assert "Error: AssertionError" in text and "  assert f5()" in text
    # The base has one sample an item: that one is compared, the others are told of.
    pair = view(study, "humaneval", ["base", "full"])
    assert len(rows_of(pair)) == 8
    assert any(line.startswith("16 not shown") for line in pair.heading())


def test_samples_without_a_number_are_counted(tmp_path: Path) -> None:
    items, samples = code_rows(1, 3)
    for row in samples:
        del row["sample"]
    put(tmp_path / "odd.json", items, samples, ["pass@1"], "m")
    assert rows_of(view(tmp_path, sample=1)) == samples[1::3]


def test_verdicts_of_items_stand_in(tmp_path: Path) -> None:
    items, samples = math_rows(4)
    bare = [{"index": row["index"], "text": row["text"]} for row in samples]
    put(tmp_path / "gsm8k.json", items, bare, ["exact_match"], "m")
    wrong = [item["index"] for item in items if not item["correct"]]
    assert [row["index"] for row in rows_of(view(tmp_path, outcome="failed"))] == wrong


@pytest.mark.parametrize(
    ("row", "names", "expected"),
    [
        ({"passed": False, "correct": True, "acc": 1}, ["acc"], False),
        ({"correct": True, "exact_match": 0}, ["exact_match"], True),
        ({"acc": 1, "acc_norm": 0}, ["acc_norm", "acc"], False),
        ({"acc": 1.0}, ["acc"], True),
        ({"pass@1": 0.35}, ["pass@1"], None),
        ({"passed": None, "acc": "1"}, ["acc"], None),
        ({"passed": [1]}, [], None),
    ],
)
def test_verdict(row: Row, names: list[str], expected: bool | None) -> None:
    assert verdict(row, names) is expected


def test_losses_are_a_table(study: Path) -> None:
    lines = list(view(study, "source_loss", ["base", "full"], limit=4).lines())
    cells = [line.split() for line in lines]
    rows = [row for row in cells if row and row[0].isdecimal() and len(row) == 5]
    base, full = loss_items(0), loss_items(10.2)
    assert len(rows) == 4
    for row, before, after in zip(rows, base, full, strict=False):
        first, second = (item["nats"] / item["tokens"] for item in (before, after))
        expected = [before["index"], before["tokens"], first, second, second - first]
        assert [float(cell) for cell in row] == pytest.approx(expected, abs=5e-5)
    alone = [line.split() for line in view(study, "source_loss").lines()]
    assert [str(base[0]["index"]), str(base[0]["tokens"]), "2.5000"] in alone
    with pytest.raises(UsageError, match="no verdict that --failed"):
        view(study, "source_loss", outcome="failed")


def test_choices_say_what_was_chosen(study: Path) -> None:
    text = "\n".join(view(study, "winogrande", index=1).lines())
    assert re.search(r"^  >        +-9\.000 nats", text, re.MULTILINE)
    assert re.search(r"^    right +-12\.000 nats", text, re.MULTILINE)
    assert "No texts were kept of base;" in text


@pytest.mark.parametrize(("metric", "chosen"), [("acc", "a sea"), ("acc_norm", "the long ending")])
def test_choices_with_texts(metric: str, chosen: str) -> None:
    row = {
        "index": 0, "context": "He walked to", "choices": ["a sea", "the long ending"], "gold": 0,
        "loglikelihoods": [-5.0, -7.0], "choice_characters": [5, 15], "extra": {"kept": [1, 2]},
    }  # fmt: skip
    lines = list(plain_lines(page("item 0", ["m"], [(row, True)], metric=metric)))
    assert lines.index("Context: He walked to") < lines.index("Choices (> the model's):")
    (marked,) = [line for line in lines if line.startswith("  >")]
    assert marked.endswith(chosen)
    assert any("right" in line and line.endswith("a sea") for line in lines)
    assert lines[-2] == 'Also: extra {"kept": [1, 2]}', "unknown fields come last"


def test_long_prompts_show_their_end(study: Path) -> None:
    (row,) = rows_of(view(study, "gsm8k", index=2))
    lines = list(view(study, "gsm8k", index=2).lines())
    (title,) = [place for place, line in enumerate(lines) if line.startswith("Prompt:")]
    shown = [line[2:] for line in lines[title + 1 : title + 1 + LINES_LEFT]]
    assert shown == row["prompt"].split("\n")[-LINES_LEFT:]
    gone = row["prompt"][: -len("\n".join(shown))]
    told = f"cut: {len(gone.splitlines())} lines, {len(gone)} characters before this; --full"
    assert told in lines[title]
    whole = open_view(study, "gsm8k", wanted=SampleFilter(index=2), full=True)
    text = "\n".join(line[2:] for line in whole.lines())
    assert row["prompt"] in text and "cut:" not in text


def test_without_a_task_there_is_an_overview(study: Path) -> None:
    found = open_view(study)
    assert isinstance(found, Overview)
    tasks = found.to_json()["tasks"]
    assert set(tasks) == {"gsm8k", "humaneval", "source_loss", "winogrande"}
    names = ["base", "aabb33334444/100", "aaaa11112222/20", "aaaa11112222/100"]
    assert [model["name"] for model in tasks["gsm8k"]["models"]] == names
    assert [model["samples"] for model in tasks["winogrande"]["models"]] == [False] * 4
    text = "\n".join(found.lines())
    assert "lora, rate 3e-4, seed 0, step 20" in text and "4 models, only items" in text
    with pytest.raises(UsageError, match=r"which task.*gsm8k, humaneval"):
        open_view(study, wanted=SampleFilter(outcome="failed"))
    # What a killed process left half-written is not looked at.
    leftover = study / "base/evals/.gsm8k.json.abcdefgh"
    leftover.mkdir()
    (leftover / "hellaswag.json").write_text("{")
    assert "hellaswag" not in find_results(study)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("base", "base"),
        ("lora", "aaaa11112222/100"),
        ("aaaa11112222", "aaaa11112222/100"),
        ("aaaa1", "aaaa11112222/100"),
        ("aaaa11112222/20", "aaaa11112222/20"),
        ("full", "aabb33334444/100"),
    ],
)
def test_models_by_name(study: Path, wanted: str, name: str) -> None:
    models = models_of(study, find_results(study)["gsm8k"])
    assert [model.name for model in choose_models(models, [wanted])] == [name]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["lorra"], r"no model 'lorra'.*Did you mean lora.*\n  base"),
        (["aa"], r"(?s)--model aa fits 2 models.*\n  aabb.*\n  aaaa"),
        (["base", "base"], "names base twice"),
        (["lora", "aaaa1"], "names aaaa11112222/100 twice"),
        ([","], "--model is empty"),
        (["\x1b[2J"], re.escape(r"\x1b[2J")),
    ],
)
def test_models_mistyped(study: Path, wanted: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_view(study, "gsm8k", wanted)
    assert "\x1b" not in str(caught.value)


def test_folders_that_evaluate_wrote(tmp_path: Path) -> None:
    put(tmp_path / "gsm8k.json", *math_rows(1), ["exact_match"], "org/model + adapter, v2")
    alone = view(tmp_path)
    assert alone.names == ["org/model + adapter, v2"], "one task and one model need no name"
    assert view(tmp_path, None, ["org/model + adapter, v2"]).names == alone.names
    for name in ("base", "first", "second"):
        put(tmp_path / name / "gsm8k.json", *math_rows(len(name)), ["exact_match"], name)
    assert view(tmp_path).names == ["base"], "the base is the default"
    pair = view(tmp_path, "gsm8k", ["first,second"])
    assert rows_of(pair, 1) == naive(tmp_path / "second/gsm8k.json")
    assert pair.others == ["base", "org/model + adapter, v2"]
    for name in ("base/gsm8k.json", "gsm8k.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=r"(?s)choose with --model NAME.*first.*second"):
        open_view(tmp_path)


def test_names_that_stand_twice_become_paths(tmp_path: Path) -> None:
    for folder, model in (("", "first"), ("first", "first")):
        put(tmp_path / folder / "gsm8k.json", *math_rows(1), ["exact_match"], model)
    names = [model.name for model in models_of(tmp_path, find_results(tmp_path)["gsm8k"])]
    assert sorted(names) == [".", "first"]


@pytest.mark.parametrize("record", ["{", "[]", '{"arm": 3}', '{"learning_rate": NaN}', None])
def test_a_run_whose_record_is_damaged_is_still_shown(study: Path, record: str | None) -> None:
    file = study / "runs/aaaa11112222/run.json"
    file.unlink() if record is None else file.write_text(record)
    assert view(study, "gsm8k", ["aaaa11112222"]).names == ["aaaa11112222/100"]


@pytest.mark.parametrize(
    ("arguments", "wish", "message"),
    [
        (["gsm8kk"], {}, "Did you mean gsm8k"),
        (["\x1b"], {}, "no results of"),
        (["gsm8k"], {"index": 30}, "no item 30; there are 30, numbered 0 to 29"),
        (["humaneval", ["full"]], {"sample": 3}, "no sample 3; there are 3, numbered 0 to 2"),
        (["humaneval", ["full"]], {"sample": 3, "index": 1}, "item 1 of .* no sample 3"),
        (["gsm8k"], {"outcome": "differ"}, "--differ compares models"),
    ],
)
def test_wishes_that_cannot_be_fulfilled(
    study: Path, arguments: list[Any], wish: Row, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        open_view(study, *arguments, wanted=SampleFilter(**wish))


def test_models_without_a_common_item(tmp_path: Path) -> None:
    items, samples = math_rows(1, 10)
    for name, part in (("a", slice(0, 5)), ("b", slice(5, 10))):
        put(tmp_path / name / "gsm8k.json", items[part], samples[part], ["exact_match"], name)
    with pytest.raises(UsageError, match="no item that all have measured"):
        open_view(tmp_path, "gsm8k", ["a", "b"])


def test_other_versions_are_told(study: Path) -> None:
    file = study / "base/evals/gsm8k.json"
    file.write_text(file.read_text().replace('"version": "1"', '"version": "2"'))
    pair = view(study, "gsm8k", ["base", "lora"])
    assert any("different versions" in line and "'2' and '1'" in line for line in pair.heading())


def packed(*lines: str) -> bytes:
    return gzip.compress("".join(line + "\n" for line in lines).encode())


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut off": (lambda b: b[: len(b) // 2], "cannot be unpacked"),
    "no gzip": (lambda b: b'{"index": 0}\n', "after line 0 it cannot be unpacked"),
    "flipped": (lambda b: b[:200] + bytes(64) + b[264:], "is damaged"),
    "no JSON": (lambda b: packed('{"index": 0}', "{oh"), "line 2 is not JSON"),
    "no object": (lambda b: packed("[1]"), "line 1 is not JSON: it holds list"),
    "no index": (lambda b: packed('{"text": "x"}'), "line 1 has no index"),
    "a flag": (lambda b: packed('{"index": true}'), "line 1 has no index"),
    "twice": (lambda b: packed(*['{"index": 4, "sample": 1}'] * 2), "item 4 has sample 1 twice"),
    "NaN": (lambda b: packed('{"index": 0, "acc": NaN}'), "NaN is no number"),
    "no UTF-8": (lambda b: gzip.compress(b'{"index": 0, "text": "\xff"}'), "line 1 is not JSON"),
    "deep": (lambda b: packed('{"index": 0, "text": ' + "[" * 200_000), "line 1 is not JSON"),
    "empty line": (lambda b: packed('{"index": 0}', ""), "line 2 is not JSON"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_samples_are_told(study: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    file = samples_file(study / "base/evals/gsm8k.json")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StoreError, match=message) as caught:
        open_view(study, "gsm8k")
    assert str(file) in str(caught.value) and "Delete it" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 200_000, '{"task": "gsm8k"}', "\x00"])
def test_damaged_results_are_told(study: Path, text: str) -> None:
    (study / "base/evals/gsm8k.json").write_text(text)
    with pytest.raises(StoreError, match=r"gsm8k\.json"):
        open_view(study, "gsm8k")


def test_folders_without_results(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a folder"):
        open_view(tmp_path / "absent")
    with pytest.raises(StoreError, match="holds no results"):
        open_view(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(StoreError, match="holds no results"):
        open_view(tmp_path)
    with pytest.raises(StoreError, match="is not a folder"):
        open_view(tmp_path / "summary.json")


HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07 [red]not red[/red] \rhidden \x08\x9b31m \u202eback\u2066 "
    "\u200b\ufeff :smile: [link=http://x]y[/link]\n== item 1: passed ==\nend\ttab \ud800 é 漢"
)


def hostile_page() -> Any:
    rows = [{"index": 0, "prompt": HOSTILE, "text": HOSTILE, HOSTILE: HOSTILE, "n": {HOSTILE: 1}}]
    rows.append({**rows[0], "text": "tame", "strict": HOSTILE, "choices": [HOSTILE] * 2,
                 "loglikelihoods": [-1, -2]})  # fmt: skip
    names = ["base", HOSTILE]
    return page("item 0", names, [(rows[0], True), (rows[1], False)])


def printed(shown: Any, width: int, **options: Any) -> str:
    """What a terminal of this width shows."""
    stream = io.StringIO()
    Console(file=stream, width=width, **options).print(drawn(shown, width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 160])
def test_what_a_model_wrote_controls_nothing(width: int) -> None:
    shown = hostile_page()
    colour = printed(shown, width, force_terminal=True, color_system="standard")
    rest = re.sub(r"\x1b\[[0-9;]*m", "", colour)
    assert "\x1b" in colour  # the colours are ours alone
    for text in ("\n".join(plain_lines(shown)), printed(shown, width), rest):
        assert not [c for c in text if obeyed(c) and c not in "\n\t"]
        joined = re.sub(r"\s+", "", text)
        for seen in ("\\x1b[2J", "\\x07", "[red]notred[/red]", "\\rhidden", "\\x9b31m", "\\u202e"):
            assert seen in joined, seen
        assert ":smile:" in text and "[link=http://x]" in joined and "漢" in text
        assert not re.search("^== item 1", text, re.MULTILINE), "an output looks like a heading"


def obeyed(character: str) -> bool:
    """Unicode's own tables: controls, line separators, surrogates, what turns direction."""
    return (
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
        or unicodedata.bidirectional(character)
        in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
        or character in "\u200e\u200f\u061c\u200b\ufeff\u2060\xad"
    )


def test_every_character_that_is_obeyed_becomes_visible() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        shown = visible(character)
        if obeyed(character) and character not in "\n\t":
            assert shown.startswith("\\") and shown.isascii(), hex(number)
        elif unicodedata.category(character) not in {"Cf", "Cn"}:
            assert shown == character, hex(number)
    assert visible("a\u200db\u200c") == "a\u200db\u200c"
    assert visible_line("a\nb\tc") == "a\\nb\\tc"


@given(st.text(st.characters(exclude_categories=())))
def test_json_stays_the_same(text: str) -> None:
    shown = visible_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(shown) == {text: [text]}
    assert not [c for c in shown if obeyed(c)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=90),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)
NAMES = st.sampled_from(
    "prompt text strict program fault target choices contexts context gold loglikelihoods "
    "choice_characters passed correct acc tokens anything".split()
)


@given(
    st.lists(st.dictionaries(NAMES, VALUES, max_size=8), min_size=1, max_size=3),
    st.sampled_from(["acc", "acc_norm", ""]),
)
@settings(max_examples=200, deadline=None)
def test_rows_of_any_shape_are_shown(rows: list[Row], metric: str) -> None:
    names = [f"m{n}" for n in range(len(rows))]
    marked = [(row, verdict(row, ["acc"])) for row in rows]
    shown = page("item 0", names, marked, metric=metric)
    plain = "\n".join(plain_lines(shown))
    printed(shown, 90)
    for row in rows:
        if isinstance(row.get("text"), str):
            for line in row["text"].split("\n"):
                assert visible(line) in plain


def test_values_nested_very_deeply() -> None:
    deep: Any = []
    for _ in range(3000):
        deep = [deep]
    lines = list(plain_lines(page("item 0", ["m"], [({"odd": deep}, None)])))
    assert "Also: odd (nested too deeply to be shown)" in lines


def test_nested_texts_keep_their_lines() -> None:
    """As the samples of lm-eval's tasks have them."""
    row = {"requests": [{"arguments": ["Solve:\n  1 + 1\n=", {"until": []}], "responses": ["2"]}]}
    lines = list(plain_lines(page("item 0", ["m"], [(row, None)])))
    assert lines[1:-1] == [
        "requests:",
        "  - arguments:",
        "      - Solve:",
        "          1 + 1",
        "        =",
        '      - {"until": []}',
        '    responses: ["2"]',
    ]


# ----- in a line or two -----


def test_a_question_is_shown_as_it_is_asked() -> None:
    facts = {"context": "Question: What does it eat?\nAnswer:", "choices": [" clams", " seeds"]}
    assert question_text(facts) == "What does it eat?" and choice_texts(facts) == ["clams", "seeds"]
    names = {"contexts": ["Ann saw Bea because Ann", "Ann saw Bea because Bea"],
             "choices": [" was ill.", " was ill."]}  # fmt: skip
    assert question_text(names) == "Ann saw Bea because ___ was ill."
    assert choice_texts(names) == ["Ann", "Bea"]
    assert question_text({"prompt": "a\x1b[2J"}) == "a\\x1b[2J"
    assert question_text({"prompt": "x" * 5000 + "end"}).startswith("… x")


def test_an_answer_is_the_choice_or_both_ends_of_a_text() -> None:
    row = {"choices": [" a", " longer"], "loglikelihoods": [-3.0, -4.0],
           "choice_characters": [1, 6]}  # fmt: skip
    assert answer_text(row, "acc") == "a" and answer_text(row, "acc_norm") == "longer"
    text = answer_text({"text": "begin" + "x" * 900 + "end"}, "exact_match")
    assert text.startswith("begin") and text.endswith("end") and len(text) < 450
    assert answer_text({}, "acc") == ""
