"""Data as people have it: files against the readers of `datasets`, rows against their meaning."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from laura.data.examples import Example
from laura.data.formats import SHAPES
from laura.data.rows import count_rows, read_rows
from laura.data.sources import load_examples, stream_examples
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import ColumnsSection, Source
from laura.results.errors import DataError, LauraError
from tests.recipe.test_reading import GOOD, faults_of

ASKED, ANSWERED = "What is 2 + 2?", "4, of course"
PAIR = (("user", ASKED), ("assistant", ANSWERED))
WITH_SYSTEM = (("system", "Be short."), *PAIR)
CHAT = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
SHARED = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]

ROWS: dict[str, tuple[dict[str, Any], tuple[tuple[str, str], ...]]] = {
    "openai": ({"messages": CHAT}, PAIR),
    "openai with names and weights": (
        {"messages": [{**CHAT[0], "name": "ann"}, {**CHAT[1], "weight": 1, "tool_calls": None}]},
        PAIR,
    ),
    "openai with parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}, CHAT[1]]},
        PAIR,
    ),
    "sharegpt": ({"conversations": SHARED, "id": "x1"}, PAIR),
    "sharegpt with system": ({"conversations": SHARED, "system": "Be short."}, WITH_SYSTEM),
    "conversations with roles": ({"conversations": CHAT}, PAIR),
    "prompt and completion": ({"prompt": ASKED, "completion": ANSWERED}, PAIR),
    "conversational prompt": ({"prompt": CHAT[:1], "completion": CHAT[1:]}, PAIR),
    "alpaca": ({"instruction": ASKED, "input": "", "output": ANSWERED, "text": "all"}, PAIR),
    "alpaca with input": (
        {"instruction": "What is it?", "input": "2 + 2", "output": ANSWERED},
        (("user", "What is it?\n\n2 + 2"), ("assistant", ANSWERED)),
    ),
    "alpaca with system": (
        {"instruction": ASKED, "output": ANSWERED, "system": "Be short."},
        WITH_SYSTEM,
    ),
    "preference": ({"prompt": ASKED, "chosen": ANSWERED, "rejected": "5"}, PAIR),
    "preference in messages": ({"prompt": ASKED, "chosen": CHAT, "rejected": CHAT}, PAIR),
    "preference, answers alone": ({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": []}, PAIR),
    "preference, implicit prompt": ({"chosen": CHAT, "rejected": CHAT}, PAIR),
    "question and answer": ({"question": ASKED, "answer": ANSWERED, "source": "web"}, PAIR),
    "query and response": ({"query": ASKED, "response": ANSWERED}, PAIR),
    "input and output": ({"input": ASKED, "output": ANSWERED}, PAIR),
}


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAURA_DATA", raising=False)


def load(path: Path, **extra: Any) -> list[Example]:
    return load_examples(Source(source=str(path), **extra))


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_known_by_their_fields(tmp_path: Path, name: str) -> None:
    row, messages = ROWS[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert load(path) == [Example(0, messages)]


def test_every_shape_is_tried_here(tmp_path: Path) -> None:
    seen = {shape.words() for shape in SHAPES if shape.text}
    for row, _ in ROWS.values():
        fits = (shape for shape in SHAPES if all(name in row for name in shape.needed))
        seen.add(next(fits).words())
    missing = {shape.words() for shape in SHAPES} - seen
    assert missing == {"prompt, response", "instruction (input), response"}


TABLE = [
    {"question": 'He said "four", then\nleft', "answer": "4, of course", "n": "1"},
    {"question": "Wie heißt es?", "answer": "So\u2028und so", "n": ""},
    {"question": "  spaces ", "answer": "'quoted'", "n": "3"},
]


def written(folder: Path, kind: str) -> Path:
    """The table in a file of this kind."""
    path = folder / f"rows.{kind}"
    ending = kind.removesuffix(".gz")
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(TABLE), path)
        return path
    if ending in ("csv", "tsv"):
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, list(TABLE[0]), delimiter="\t" if ending == "tsv" else ",")
            table.writeheader()
            table.writerows(TABLE)
    elif ending == "json":
        path.write_text(json.dumps(TABLE, indent=2), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in TABLE), encoding="utf-8")
    if kind.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


KINDS = ("jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "tsv", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    assert [row for _, row in read_rows(path)] == TABLE
    assert count_rows(path) == len(TABLE)
    assert [example.messages[0][1] for example in load(path)] == [r["question"] for r in TABLE]


@pytest.mark.parametrize("kind", ("csv", "json", "parquet"))
def test_datasets_reads_the_same(tmp_path: Path, kind: str) -> None:
    import datasets

    path = written(tmp_path, kind)
    theirs = datasets.load_dataset(
        kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    questions = [row["question"] for row in theirs]
    assert questions == [row["question"] for _, row in read_rows(path)]


def test_columns_say_what_the_names_do_not(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("frage,zusatz,antwort,ton\nA?,mehr,B,kurz\nC?,,D,\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"has the fields frage, zusatz, antwort, ton; known are"):
        load(path)
    columns = {"prompt": ["frage", "zusatz"], "completion": "antwort", "system": "ton"}
    recipe = parse_recipe(
        GOOD, [f"data.train={json.dumps({'source': str(path), 'columns': columns})}"]
    )
    assert load_examples(recipe.data.train) == [
        Example(0, (("system", "kurz"), ("user", "A?\n\nmehr"), ("assistant", "B"))),
        Example(1, (("user", "C?"), ("assistant", "D"))),
    ]
    text = Source(source=str(path), columns=ColumnsSection(text="antwort"))
    assert [example.text for example in load_examples(text)] == ["B", "D"]
    with pytest.raises(DataError, match="lacks reply; has the fields frage"):
        load(path, columns=ColumnsSection(prompt=["frage"], completion="reply"))
    with pytest.raises(DataError, match="is a set whose columns are known"):
        load_examples(Source(source="micro-math", columns=ColumnsSection(text="question")))


def test_columns_that_cannot_be_meant_are_faults_of_the_recipe() -> None:
    for columns in ("{}", "{prompt: q}", "{completion: a}", "{text: t, messages: m}",
                  "{prompt: q, completion: a, text: t}"):  # fmt: skip
        faults = faults_of(GOOD, (f"data.train={{source: a.csv, columns: {columns}}}",))
        assert faults["data.train.columns"].startswith("must name messages, or prompt and")
    one = parse_recipe(GOOD, ["data.train={source: a.csv, columns: {prompt: q, completion: a}}"])
    assert one.data.train.columns == ColumnsSection(prompt=["q"], completion="a")


def test_one_bad_row_is_told_with_its_neighbours_and_may_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[Any] = [{"question": f"{n}?", "answer": str(n)} for n in range(50)]
    rows[3]["answer"], rows[7], rows[20]["answer"] = None, {"other": 1}, " "
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load(path)
    assert "line 4: answer must be a string, came null" in str(caught.value)
    assert "2 of the 46 rows behind it do not fit either (line 8, line 21)" in str(caught.value)
    assert "bad_rows: skip" in str(caught.value)
    told: list[str] = []
    source = Source(source=str(path), bad_rows="skip")
    found = list(stream_examples(source, None, told.append))
    assert [example.index for example in found] == [n for n in range(50) if n not in (3, 7, 20)]
    assert told == [
        f"{path} is read as question, answer",
        f"{path}: 3 rows skipped, line 4, line 8, line 21",
    ]


def test_what_is_skipped_is_told_whoever_stops_reading(tmp_path: Path) -> None:
    """At a limit, and where somebody has enough; also where the first row is a bad one."""
    path = tmp_path / "rows.jsonl"
    rows = [{"other": 1}, *({"question": f"{n}?", "answer": str(n)} for n in range(9))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for limit in (3, None):
        told: list[str] = []
        source = Source(source=str(path), bad_rows="skip", limit=limit)
        reading: Any = stream_examples(source, None, told.append)
        assert [next(reading).index for _ in range(3)] == [1, 2, 3]
        if limit:
            assert list(reading) == []
        else:
            reading.close()
        assert told == [
            f"{path} is read as question, answer",
            f"{path}: 1 row skipped, line 1",
        ]


def test_all_rows_bad_is_no_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    with pytest.raises(DataError, match="has no rows"):
        load(path, bad_rows="skip")


FAULTS: list[tuple[str, bytes, str]] = [
    ("a.csv", b"question,answer\nA,B,C\n", "line 2: has 3 cells, but there are 2 columns"),
    ("a.csv", b"question,question\nA,B\n", "names of columns must differ"),
    ("a.csv", b"question,\nA,B\n", "names of columns must differ"),
    ("a.csv", b'question,answer\nA,"B\n', "is no row of a table"),
    ("a.csv", b'question,answer\nA,"B"C\n', "is no row of a table"),
    ("a.csv", b"question,answer\n\xff,B\n", "line 2: is not UTF-8"),
    ("a.csv", b"question,answer\n", "has no rows"),
    ("a.csv", b"", "has no rows"),
    ("a.json", b'[{"text": "a"}, 3]', "row 1: must be a JSON object"),
    ("a.json", b'[{"text": "a"}', "is not JSON"),
    ("a.json", b"[]", "has no rows"),
    ("a.json", b"[" * 100_000, "is not JSON"),
    ("a.json", b'{"text": {"a": 1}}', "text must be a string, came an object"),
    ("a.parquet", b"PAR1", "is a broken Parquet file"),
    ("a.parquet", b"PAR1" + b"\x00" * 100 + b"PAR1", "is a broken Parquet file"),
    ("a.jsonl", b'{"messages": [{"role": "tool", "content": "x"}]}', "calls a tool or answers"),
    (
        "a.jsonl",
        b'{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]}',
        "calls a tool or answers",
    ),
    ("a.jsonl", b'{"conversations": [{"from": "bot", "value": ""}]}', "role must be system, user"),
    (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        "content must be a string or a list of",
    ),
    ("a.jsonl", b'{"chosen": "b", "rejected": "c"}', "chosen must be a list of"),
    ("a.jsonl", b'{"prompt": null, "completion": "c"}', "prompt must be a string, came null"),
]


@pytest.mark.parametrize(("name", "content", "message"), FAULTS)
def test_every_fault_is_one_message(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_what_must_be_held_whole_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array, and the rows of a Parquet file that are read together."""
    array, table = written(tmp_path, "json"), written(tmp_path, "parquet")
    monkeypatch.setattr("laura.data.rows.MOST_ARRAY_BYTES", array.stat().st_size - 1)
    monkeypatch.setattr("laura.data.rows.MOST_LINE_BYTES", 5)
    with pytest.raises(DataError, match="bytes; write it as JSON Lines, one object a line"):
        load(array)
    with pytest.raises(DataError, match="rows from 0 on are longer than a row may be"):
        load(table)
    monkeypatch.setattr("laura.data.rows.MOST_ARRAY_BYTES", array.stat().st_size)
    assert len(load(array)) == len(TABLE)


def test_an_array_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 2**26 + b"]"))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        load(path)


@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 6))
@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_files_give_rows_or_a_clear_error(
    tmp_path: Path, kind: str, seed: int, changes: int
) -> None:
    path, chance = written(tmp_path, kind), random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(changes):
        place = chance.randrange(len(data))
        data[place : place + chance.randrange(4)] = chance.randbytes(chance.randrange(4))
        data = data or bytearray(b"x")
    path.write_bytes(bytes(data))
    try:
        for example in load(path):
            assert example.digest
    except LauraError as error:
        assert "rows." in str(error)


def test_a_parquet_file_is_read_piece_by_piece(tmp_path: Path) -> None:
    """16 MB that do not shrink, in one group of rows: pyarrow holds 8 MB, of larger files too."""
    chance, path = random.Random(0), tmp_path / "a.parquet"
    texts = [chance.randbytes(2048).hex() for _ in range(4000)]
    parquet.write_table(pyarrow.table({"text": texts}), path)
    assert parquet.ParquetFile(path).num_row_groups == 1
    before = pyarrow.total_allocated_bytes()
    rows = read_rows(path)
    assert next(rows)[1]["text"] == texts[0]
    assert pyarrow.total_allocated_bytes() - before < 12e6
    assert [row["text"] for _, row in rows] == texts[1:]
    assert count_rows(path) == 4000
