"""`laura init`: what it sees of the data, what it splits off, and a recipe that runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from laura.cli import app as cli
from laura.data.sources import load_examples, load_rows
from laura.data.splits import load_held_out, make_splits
from laura.models.registry import MICRO_BASE
from laura.recipe.reading import read_recipe
from laura.study.first_look import SHARED_WORDS
from tests.cli.terminal import Terminal

LEAKED = next(
    row["ctx_a"]
    for row in load_rows("micro_events", "test")
    if len(row["ctx_a"].split()) == SHARED_WORDS
)
PAIRS = [
    *((f"How many legs have {n} cats?", f"{4 * n} legs.") for n in range(40)),
    ("How many legs have 3 cats?", "12 legs."),  # row 40, again
    ("how many legs  have 4 cats?", "Sixteen."),  # row 41, asked again
    (f"What comes next? {LEAKED}", "Nobody knows."),  # row 42, of a benchmark
    ("", "Forty-two."),  # row 43, of no question
]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """support.csv in the folder that commands are given in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "support.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *PAIRS])
    return path


def init(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["init", *arguments])


def look(*arguments: str) -> dict[str, Any]:
    result = init(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_the_first_look_is_that_of_a_naive_reader(table: Path) -> None:
    from tokenizers import Tokenizer

    seen = look("support.csv")["first_look"]
    count = Tokenizer.from_file(str(MICRO_BASE / "tokenizer.json")).encode
    sizes = sorted(sum(max(1, len(count(text).ids)) for text in pair) for pair in PAIRS)
    assert (seen["rows"], seen["longest_tokens"]) == (len(PAIRS), sizes[-1])
    assert seen["median_tokens"] == sizes[len(sizes) // 2]
    assert sum(size <= seen["percentile_95_tokens"] for size in sizes) >= 0.95 * len(sizes)
    assert (seen["repeated"], seen["asked_again"], seen["unasked"]) == ([40], [41], [43])
    assert seen["leaks"] == {"micro_facts": [], "micro_events": [42], "micro_pronouns": []}


def test_the_recipe_reads_and_its_test_is_apart_from_what_is_learnt(table: Path) -> None:
    found = look("support.csv")
    recipe = read_recipe(found["recipe"])
    train, held = load_examples(recipe.data.train), load_held_out(recipe.data)
    assert make_splits(recipe.data, train, held).held_out
    assert len(held.test) == len(PAIRS) // 10 and set(recipe.arms) == {"lora-r16", "full"}
    asked = [{example.prompt_digest for example in part} for part in (train, held.test)]
    assert not asked[0] & asked[1] and len(asked[0] | asked[1]) == len({q for q, _ in PAIRS}) - 1
    assert found["first_look"]["longest_tokens"] <= recipe.train.row_tokens


@pytest.mark.slow
def test_from_a_table_to_a_verdict(table: Path) -> None:
    look("support.csv", "--epochs", "2")
    few = ["arms.full.learning_rates=[8e-4]", "arms.lora-r16.learning_rates=[2e-3]",
           "measure.limit=10", "measure.loss_documents=4", "seeds=[0]"]  # fmt: skip
    overrides = [part for one in few for part in ("--set", one)]
    result = CliRunner().invoke(cli.app, ["compare", "support.yaml", *overrides, "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["judgement"]["answer"]
    assert Path("studies/support/report.html").is_file()


def test_named_sets_bring_their_test_and_columns_may_be_told(table: Path) -> None:
    assert look("micro-math", "--out", "a.yaml")["test"] == {"source": "micro-math",
                                                             "split": "test"}  # fmt: skip
    table.write_text(table.read_text().replace("question,answer", "subject,reply", 1))
    wrong = init("support.csv")
    assert wrong.exit_code == 2 and "columns" in wrong.stderr
    told = look("support.csv", "--prompt", "subject", "--completion", "reply")
    columns = read_recipe(told["recipe"]).data.train.columns
    assert columns is not None and (columns.prompt, columns.completion) == (["subject"], "reply")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs DATA"),
        (["support.csv", "--epochs", "one"], "--epochs wants numbers"),
        (["support.csv", "--epochs", "3,1"], "budget.epochs"),
        (["support.csv", "--prompt", "a"], "give both"),
        (["suport.csv"], "support.csv"),
        (["support.csv", "--out", "there.yaml"], "there.yaml is there already"),
        (["support.csv", "--out", "mine.yaml"], "mine-data is there already"),
        (["few.jsonl"], "too few"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    table: Path, arguments: list[str], words: str
) -> None:
    Path("there.yaml").write_text("mine")
    Path("mine-data").mkdir()
    Path("few.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    result = init(*arguments)
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert Path("there.yaml").read_text() == "mine" and not list(table.parent.glob("s*.yaml"))


def test_a_person_is_asked_five_questions(table: Path) -> None:
    out = table.parent / "asked.yaml"
    with Terminal("laura", "init", "--out", str(out)) as terminal:
        for question, answer in (
            ("Data to learn from", str(table)),
            ("Base model [micro]", ""),
            ("Rows never trained on", ""),
            ("Text it should still model well [micro-source]", ""),
            ("Passes over the data [1,3]", "1"),
        ):
            terminal.wait_for(question)
            terminal.type(f"{answer}\r")
        terminal.wait_for("is written")
        assert terminal.ended() == 0
    assert read_recipe(out).budget.epochs == [1]
