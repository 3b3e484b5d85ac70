from __future__ import annotations

import gzip
import importlib.util
import re
from pathlib import Path

import pytest

from laura.data.examples import Example
from laura.data.sources import BUILTIN, load_examples
from laura.recipe.sections import Source

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_word_problems.py"


def problems(split: str) -> list[Example]:
    return load_examples(Source(source="builtin:word-problems", split=split))


def test_the_script_writes_what_is_shipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("make_word_problems", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path)
    assert "560 rows" in capsys.readouterr().out
    names = sorted(path.name for path in BUILTIN.glob("*.gz"))
    assert names == ["source_text.jsonl.gz", "word_problems.jsonl.gz"]
    for name in names:
        # The rows are compared, not the gzip: zlib's output differs between versions.
        made, shipped = (
            gzip.decompress((place / name).read_bytes()) for place in (tmp_path, BUILTIN)
        )
        assert made == shipped
    assert sum(path.stat().st_size for path in BUILTIN.iterdir()) < 150_000


def test_every_worked_answer_is_right() -> None:
    for example in (*problems("train"), *problems("validation"), *problems("test")):
        (_, question), (_, answer) = example.messages
        *lines, last = answer.split("\n")
        assert 2 <= len(lines) <= 3
        for line in lines:
            found = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", line)
            assert len(found) == 1, line
            left, sign, right, result = found[0]
            a, b = int(left), int(right)
            exact = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign]
            assert exact == int(result) > 0, line
        assert last == f"#### {result}", answer
        assert question.endswith("?")


def test_no_question_comes_twice() -> None:
    asked = [e.prompt_digest for split in ("train", "validation", "test") for e in problems(split)]
    assert len(asked) == len(set(asked)) == 560
