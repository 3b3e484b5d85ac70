"""Sources of many files, and sets that are read only as far as a budget needs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from laura.data.formats import Columns
from laura.data.named import NAMED, TRAIN, KnownSet
from laura.data.sources import count_examples, load_examples
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import BudgetSection, DataSection, MeasureSection, Source
from laura.results.errors import DataError, RecipeError
from laura.study.material import ExampleEncoder, prepare
from tests.study.test_plan import micro_recipe


def write_set(folder: Path, files: dict[str, list[str]]) -> Path:
    """A data set as it lies on the Hub: Parquet files below `texts`, and a card that names them."""
    (folder / "texts").mkdir(parents=True)
    for name, texts in files.items():
        table = pyarrow.table({"text": texts})
        parquet.write_table(table, folder / "texts" / f"{name}.parquet")
    card = [{"config_name": "texts", "data_files": [{"split": "train", "path": "texts/train-*"}]}]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(card)}\n---\n")
    return folder


def texts_of(source: str, **more: Any) -> list[str]:
    return [example.text for example in load_examples(Source(source=source, **more))]


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = write_set(tmp_path, {"train-1": ["c", "d"], "train-0": ["a", "b"]}) / "texts"
    (folder / "later").mkdir()
    (folder / "later" / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "e"}\n'))
    for hidden in (".cache", "later/.part.jsonl"):
        (folder / hidden).write_text('{"text": "hidden"}\n')
    (folder / "notes.md").write_text("no rows")
    source = Source(source=str(folder))
    examples = load_examples(source)
    assert [e.text for e in examples] == ["e", "a", "b", "c", "d"]
    assert [e.index for e in examples] == [0, 1, 2, 3, 4]
    assert count_examples(source) == 5
    assert texts_of(f"{folder}/train-*") == ["a", "b", "c", "d"]
    assert texts_of(f"{folder}/**/*.jsonl.gz") == ["e"]
    assert texts_of(f"{folder}/train-*.parquet", limit=3) == ["a", "b", "c"]
    odd = tmp_path / "[1].jsonl"  # a name is a name before it is a pattern
    odd.write_text('{"text": "f"}\n')
    assert texts_of(str(odd)) == ["f"]


def test_what_holds_no_rows_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, words in {
        "empty": "holds no file of rows",
        "train-*.parquet": "does not exist",
    }.items():
        with pytest.raises(DataError, match=words):
            load_examples(Source(source=str(tmp_path / name)))
    with pytest.raises(DataError, match="lies here and has no split"):
        load_examples(Source(source=str(tmp_path / "empty"), split="train"))


WORDS = "the cat sat on a mat and the dog ran to it"


@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_a_stream_is_read_as_far_as_the_budget_needs(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    files = {f"train-{n}": [f"{WORDS} {i} {n}" for i in range(400)] for n in range(3)}
    folder = write_set(tmp_path / "set", files)
    # Whoever reads so far finds it broken.
    (folder / "texts" / "train-2.parquet").write_bytes(b"PAR1 no more")
    if kind == "hub":  # through `datasets` itself; only the address is another one
        known = KnownSet(str(folder), "texts", TRAIN, columns=Columns(text="text"))
        monkeypatch.setitem(NAMED, "far", known)
    source = Source(source="far" if kind == "hub" else str(folder / "texts"), streaming=True)
    encoder = ExampleEncoder(tiny_tokenizer, "plain", "pretrain")

    def made(source: Source, tokens: int) -> Any:
        section = DataSection(train=source, validation_rows=10)
        budget = BudgetSection(tokens=[tokens])
        return prepare(section, MeasureSection(), budget, encoder, tmp_path / "out", None)

    found = made(source, 5000)
    held = sum(len(item.token_ids) for item in found.train)
    assert held >= 5000 and len(found.train) < 800
    # A larger budget is another corpus, and so is another state of a file.
    assert made(source, 6000).corpus_folder != found.corpus_folder
    assert made(source, 5000).corpus_folder == found.corpus_folder
    if kind == "folder":
        write_set(tmp_path / "other", {"x": ["more"]})
        (tmp_path / "other" / "texts" / "x.parquet").rename(folder / "texts" / "train-3.parquet")
        assert made(source, 5000).corpus_folder != found.corpus_folder
        with pytest.raises(DataError, match=r"train-2\.parquet is a broken Parquet file"):
            made(source.model_copy(update={"streaming": False}), 5000)


def test_a_stream_needs_to_know_where_to_stop() -> None:
    data = {
        "train": {"source": "a.jsonl", "streaming": True},
        "test": {"source": "b", "streaming": True},
    }
    text = micro_recipe().model_dump(mode="json") | {"data": data, "budget": {"epochs": [1]}}
    with pytest.raises(RecipeError) as caught:
        parse_recipe(json.dumps(text))
    problems = {fault.path: fault.problem for fault in caught.value.faults}
    assert "give data.train.limit, or budget.tokens" in problems["data.train.streaming"]
    assert "give data.test.limit" in problems["data.test.streaming"]
