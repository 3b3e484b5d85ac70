from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laura.data.examples import Example
from laura.data.formats import Columns
from laura.data.named import BENCHMARK_ROWS, NAMED, wikitext_articles
from laura.data.sources import load_examples, load_rows, stream_examples
from laura.recipe.sections import ColumnsSection, Source
from laura.results.errors import DataError, HubError, LauraError


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAURA_DATA", raising=False)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path | str, **extra: Any) -> list[Example]:
    return load_examples(Source(source=str(path), **extra))


def test_formats_are_told_row_by_row(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    path = write(
        tmp_path / "mixed.jsonl",
        {"messages": messages, "id": 7},
        {"prompt": "c?", "completion": "d"},
        {"text": "e"},
    )
    assert load(path) == [
        Example(0, (("user", "a?"), ("assistant", "b"))),
        Example(1, (("user", "c?"), ("assistant", "d"))),
        Example(2, (), "e"),
    ]


def test_gzip_is_known_by_its_bytes_and_blank_lines_and_mark_are_passed_over(
    tmp_path: Path,
) -> None:
    content = b'\xef\xbb\xbf{"text": "one"}\r\n\n{"text": "tw\xc3\xb6\xe2\x80\xa8"}'
    for name, data in {"a.jsonl": content, "b.jsonl.gz": gzip.compress(content)}.items():
        (tmp_path / name).write_bytes(data)
        assert [e.text for e in load(tmp_path / name)] == ["one", "tw\u00f6\u2028"]
    (tmp_path / "c.jsonl").write_bytes(gzip.compress(content))
    assert len(load(tmp_path / "c.jsonl")) == 2


def test_limit_and_stream_agree(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"text": f"t{i}"} for i in range(10)))
    source = Source(source=str(path), limit=3)
    assert [e.index for e in load_examples(source)] == [0, 1, 2]
    assert list(stream_examples(source)) == load_examples(source)


FAULTS: list[tuple[bytes, str]] = [
    (b'{"text": "a"}\n{"frage": "q", "antwort": "a"}\n', "line 2: has the fields frage, antwort"),
    (b'{"foo": 1}', "known are messages; .* prompt, completion; .* text. Rename them, or say"),
    (b"{}", r"has the fields \(none\)"),
    (b'{"text": 3}', "line 1: text must be a string, came a number"),
    (b'{"text": " "}', "line 1: has nothing to learn"),
    (b'{"prompt": "a", "completion": null}', "completion must be a string, came null"),
    (b'{"prompt": "a", "completion": "\\n"}', "nothing to learn"),
    (b'{"messages": []}', "came an empty list"),
    (b'{"messages": "hi"}', "must be a list of .* came a string"),
    (b'{"messages": [3]}', "message 0 must have role and content, came a number"),
    (b'{"messages": [{"role": "user"}]}', "came the fields role"),
    (b'{"messages": [{"role": "bot", "content": ""}]}', "role must be system, user, human"),
    (b'{"messages": [{"role": "user", "content": ["x"]}]}', "content must be a string or"),
    (b'{"messages": [{"role": "user", "content": "x"}]}', "no message is the assistant's"),
    (b'{"text": "a"}\n{"text": ', "line 2: is not JSON .*one object a line, or an array"),
    (b'{"text": "a"}\n{"text": "\xff"}', "line 2: is not UTF-8"),
    (b'{"text": "\\ud800"}', "half of a surrogate pair"),
    (b"[1, 2]", "row 0: must be a JSON object .* came a number"),
    (b"[" * 100_000, "is not JSON"),
    (b"1" * 5000, "is not JSON"),
    (b"", "has no rows"),
    (b"\n\n", "has no rows"),
]


@pytest.mark.parametrize(("content", "message"), FAULTS)
def test_every_fault_of_a_file_is_one_message(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert "rows.jsonl" in str(caught.value)


def test_broken_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    path = tmp_path / "rows.jsonl.gz"
    for broken in (whole[:-20], whole[:12] + b"\xff" * 40, b"\x1f\x8b"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="broken gzip"):
            load(path)
    path.write_bytes(b'{"text": "a"}')
    with pytest.raises(DataError, match=r"ends in \.gz but is not gzipped"):
        load(path)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    write(tmp_path / "training.jsonl", {"text": "a"})
    cases = {
        f"{tmp_path}/trainin.jsonl": r"does not exist; nearest there: training\.jsonl",
        f"{tmp_path}/nowhere/a.jsonl": "nor does its folder",
        f"{tmp_path}/train*.jsonl.gz": "does not exist",
        "gsm9k": "did you mean gsm8k",
        "x\0y.jsonl": "does not exist",
        "a" * 5000: "unknown data set",
        "~nobody-of-this-name/a.jsonl": "does not exist",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            load(name)


def test_a_file_has_no_split_and_may_lie_in_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = write(tmp_path / "mine" / "a.jsonl", {"text": "a"})
    with pytest.raises(DataError, match="has no split"):
        load(path, split="train")
    assert load_examples(Source(source="mine/a.jsonl"), tmp_path)[0].text == "a"


def test_data_folder_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-dir names"):
        load_examples(Source(source="gsm8k"), tmp_path / "none")
    monkeypatch.setenv("LAURA_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match="LAURA_DATA names"):
        load("gsm8k")


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_bytes_give_examples_or_a_clear_error(
    tmp_path: Path, seed: int, changes: int
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "c", "completion": "d"},
        {"text": "e\ud83d\ude00"},
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    chance = random.Random(seed)
    data = bytearray(gzip.compress(content) if chance.random() < 0.3 else content)
    for _ in range(changes):
        place = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[place] = chance.randrange(256)
        elif kind == 1:
            del data[place : place + chance.randrange(8)]
        elif kind == 2:
            data[place:place] = data[place : place + chance.randrange(30)]
        else:
            data[place:place] = chance.choice([b"\x00", b'"', b"{", b"null", b"\\ud800", b"\n"])
        data = data or bytearray(b"x")
    path = tmp_path / "mutated.jsonl"
    path.write_bytes(bytes(data))
    try:
        for example in load(path):
            assert example.digest and example.normal_digest is not None
    except LauraError as error:
        assert "mutated.jsonl" in str(error)


def test_named_sets_from_the_data_folder(shared_data: Path) -> None:
    train = load_examples(Source(source="gsm8k"), shared_data)
    test = load_examples(Source(source="openai/gsm8k", split="test"), shared_data)
    assert (len(train), len(test)) == (7473, 1319)
    assert train[0].messages[0][1].startswith("Natalia sold clips to 48")
    assert train[0].messages[1][1].endswith("#### 72")
    code = load_examples(Source(source="codealpaca", limit=1), shared_data)[0]
    assert code.messages[0][1].endswith("height.\n\nwidth: 5, height: 8")
    assert len(load_examples(Source(source="wikitext"), shared_data)) == 62
    assert len(load_examples(Source(source="wikitext", split="validation"), shared_data)) == 60
    assert len(load_examples(Source(source="c4"), shared_data)) == 330
    assert next(stream_examples(Source(source="c4"), shared_data)).text


def test_named_sets_know_their_splits_and_some_want_a_limit() -> None:
    with pytest.raises(DataError, match="gsm8k has no split 'dev'; it has train, test"):
        load("gsm8k", split="dev")
    with pytest.raises(DataError, match="too large to load whole; give a limit"):
        load("openwebmath")


def test_every_named_set_is_complete() -> None:
    for name, named in NAMED.items():
        assert named.default_split in named.splits, name
        columns = named.columns or Columns()
        assert bool(columns.prompt) == bool(columns.completion), name
        assert not (columns.text and columns.completion), name
        assert bool(named.hub) != bool(named.builtin), name
        assert set(named.local) <= set(named.splits), name


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("hellaswag", "validation", 10_042),
        ("arc_challenge", "test", 1172),
        ("winogrande", "validation", 1267),
        ("gsm8k", "test", 1319),
        ("humaneval", "test", 164),
        ("mbpp", "prompt", 10),
        ("mbpp", "test", 500),
    ],
)
def test_benchmark_rows(shared_data: Path, name: str, split: str, count: int) -> None:
    rows = load_rows(name, split, shared_data)
    assert len(rows) == count
    assert set(BENCHMARK_ROWS[name].fields) <= set(rows[-1])


def test_benchmark_rows_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    write(tmp_path / "gsm8k" / "test.jsonl", {"question": "q"})
    with pytest.raises(DataError, match="line 1: lacks answer; has the fields question"):
        load_rows("gsm8k", "test", tmp_path)
    write(tmp_path / "gsm8k" / "test.jsonl")
    with pytest.raises(DataError, match="has no rows"):
        load_rows("gsm8k", "test", tmp_path)
    with pytest.raises(DataError, match="unknown benchmark 'helaswag'; did you mean hellaswag"):
        load_rows("helaswag", "validation", tmp_path)
    with pytest.raises(DataError, match="no split 'test'"):
        load_rows("hellaswag", "test", tmp_path)


def test_rows_of_one_file_are_split_by_task_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"text": "t", "code": "c", "test_list": []}
    ids = [1, 10, 11, 510, 511, 600, 601, 974, 975]
    (tmp_path / "mbpp").mkdir()
    write(tmp_path / "mbpp" / "mbpp.jsonl", *({**row, "task_id": i} for i in ids))
    found = {
        split: [kept["task_id"] for kept in load_rows("mbpp", split, tmp_path)]
        for split in ("prompt", "test", "validation", "train")
    }
    assert list(found.values()) == [[1, 10], [11, 510], [511, 600], [601, 974]]
    write(tmp_path / "mbpp" / "mbpp.jsonl", {**row, "task_id": 1}, row)
    with pytest.raises(DataError, match="line 2: lacks task_id"):
        load_rows("mbpp", "prompt", tmp_path)
    write(tmp_path / "mbpp" / "mbpp.jsonl", {**row, "task_id": "11"})
    with pytest.raises(DataError, match="mbpp, split test, has no rows"):
        load_rows("mbpp", "test", tmp_path)


def test_the_hub_splits_mbpp_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*args: Any, **options: Any) -> list[dict[str, Any]]:
        assert args == ("google-research-datasets/mbpp", "full") and options["split"] == "test"
        return [{"task_id": 7, "text": "t", "code": "c", "test_list": []}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [row["task_id"] for row in load_rows("mbpp", "test")] == [7]


def test_the_hub_out_of_reach_says_what_to_do(tmp_path: Path) -> None:
    for call in (
        lambda: load("gsm8k"),
        lambda: load_rows("hellaswag", "validation", tmp_path),
        lambda: load("somebody/some-set"),
    ):
        with pytest.raises(HubError, match=r"--data-dir .*LAURA_DATA.* file of rows"):
            call()


def test_rows_from_a_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[tuple[Any, dict[str, Any]]] = []

    def load_dataset(*args: Any, **options: Any) -> list[dict[str, Any]]:
        calls.append((args, options))
        return [{"query": "q", "response": a} for a in ("a", " ")] * 2

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = load("metamathqa", limit=2)
    assert [e.index for e in examples] == [0, 2]
    assert examples[0].messages == (("user", "q"), ("assistant", "a"))
    assert calls[0][0] == ("meta-math/MetaMathQA", None)
    assert calls[0][1] == {"split": "train", "data_dir": None, "streaming": True}
    load("metamathqa")
    assert calls[1][1]["streaming"] is False
    columns = ColumnsSection(prompt=["question"], completion="response")
    with pytest.raises(DataError, match="row 0: lacks question; has the fields query, response"):
        load("somebody/some-set", subset="x", columns=columns)
    assert calls[2][0] == ("somebody/some-set", "x")


def test_lines_of_wikitext_become_articles() -> None:
    lines = [
        "",
        " = One = \n",
        "",
        " first \n",
        " = = Part = = \n",
        " more \n",
        " = Two = \n",
        " x ",
    ]
    found = [row["text"] for row in wikitext_articles({"text": line} for line in lines)]
    assert found == [" = One = \n first \n = = Part = = \n more ", " = Two = \n x "]


def test_digests_tell_content_apart_and_normal_ones_do_not_mind_case_and_space() -> None:
    one = Example(0, (("user", "What  is\n1+1?"), ("assistant", "2")))
    two = Example(9, (("system", "s"), ("user", "what is 1+1? "), ("assistant", "3")))
    same = Example(5, one.messages)
    assert one.digest == same.digest != two.digest
    assert (
        one.normal_digest
        == Example(0, (("user", "WHAT is 1+1?"), ("assistant", "2"))).normal_digest
    )
    assert one.prompt_digest == two.prompt_digest != ""
    assert Example(0, (), "a").prompt_digest == ""
