"""A corpus on the disk gives back what was put in, however its writing went."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from laura.data import corpus as module
from laura.data.corpus import Corpus, Enough, Subset, write_corpus
from laura.data.examples import Example
from laura.data.packing import fit
from laura.data.templates import Encoded
from laura.results.errors import DataError, StoreError
from laura.study.material import ExampleEncoder
from tests.data.packed import pack
from tests.data.test_folders import write_set

ASKED = [(("user", f"What is {i}?"), ("assistant", f"It is {i}.")) for i in range(1200)]
EXAMPLES = [Example(3 * i, messages) for i, messages in enumerate(ASKED)]


def encode(examples: list[Example]) -> list[Encoded]:
    """Tokens that tell their example; the second half is learnt."""
    found = []
    for example in examples:
        length = 2 + example.index % 11
        ids = [(example.index * 7 + place) % 60_000 for place in range(length)]
        found.append(Encoded(example.index, ids, [i > length // 2 for i in range(length)], length))
    return found


def learnt_whole(examples: list[Example]) -> list[Encoded]:
    """Tokens of which all but the first are learnt."""
    return [
        Encoded(e.index, e.token_ids, [False] + [True] * (len(e.token_ids) - 1), 7)
        for e in encode(examples)
    ]


def write(folder: Path, examples: Any = None, **changes: Any) -> Corpus:
    settings: dict[str, Any] = {"vocabulary": 60_000, "masked": True}
    rows = iter(EXAMPLES) if examples is None else examples
    what = settings.pop("encode", changes.pop("encode", encode))
    identity = changes.pop("identity", {"source": "x"})
    return write_corpus(folder, identity, rows, what, **{**settings, **changes})


def test_examples_come_back_as_they_were(tmp_path: Path) -> None:
    found = write(tmp_path)
    assert len(found) == 1200 and list(found) == encode(EXAMPLES)
    assert (tmp_path / "tokens.bin").stat().st_size == 2 * sum(len(e.token_ids) for e in found)
    for known, example in zip(found.identities, EXAMPLES, strict=True):
        assert known.index == example.index
        assert known.digest == example.digest
        assert known.normal_digest == example.normal_digest
        assert known.prompt_digest == example.prompt_digest
    with pytest.raises(IndexError):
        found[1200]
    assert [item.index for item in Subset(found, range(10, 30, 5))] == [30, 45, 60, 75]


def test_large_vocabularies_and_whole_documents(tmp_path: Path) -> None:
    found = write(tmp_path, encode=learnt_whole, masked=False, vocabulary=128_000)
    assert list(found) == learnt_whole(EXAMPLES)
    assert not (tmp_path / "learnt.bin").exists()
    assert (tmp_path / "tokens.bin").stat().st_size == 4 * sum(len(e.token_ids) for e in found)
    text = Example(0, (), "only text")
    assert write(tmp_path / "t", iter([text, text])).identities[1].prompt_digest == ""


def test_what_stands_is_not_made_again_and_other_data_is(tmp_path: Path) -> None:
    write(tmp_path)

    def refuse(_: list[Example]) -> list[Encoded]:
        raise AssertionError("tokenised again")

    assert len(write(tmp_path, iter([]), encode=refuse)) == 1200
    assert len(write(tmp_path, iter(EXAMPLES[:5]), identity={"source": "y"})) == 5
    # A file that was cut off is not trusted.
    (tmp_path / "learnt.bin").write_bytes(b"")
    with pytest.raises(AssertionError, match="tokenised again"):
        write(tmp_path, identity={"source": "y"}, encode=refuse)


@pytest.mark.parametrize("killed_after", [1, 3])
def test_writing_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    monkeypatch.setattr(module, "CHUNK", 300)
    monkeypatch.setattr(module, "STATE_SECONDS", 0.0)
    calls = 0

    def dying(examples: list[Example]) -> list[Encoded]:
        nonlocal calls
        calls += 1
        if calls > killed_after:
            raise KeyboardInterrupt
        return encode(examples)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, encode=dying)
    assert not (tmp_path / "corpus.json").exists()
    # What a kill leaves behind the last state is cut off.
    with (tmp_path / "tokens.bin").open("ab") as file:
        file.write(b"half a token")
    seen = 0

    def counting(examples: list[Example]) -> list[Encoded]:
        nonlocal seen
        seen += len(examples)
        return encode(examples)

    found = write(tmp_path, encode=counting)
    assert seen == 1200 - 300 * killed_after
    assert list(found) == encode(EXAMPLES)
    whole = write(tmp_path / "undisturbed")
    for name in ("tokens", "learnt", "records", "digests"):
        one, other = (folder / f"{name}.bin" for folder in (tmp_path, tmp_path / "undisturbed"))
        assert one.read_bytes() == other.read_bytes()
    assert len(whole) == 1200


def test_an_old_state_vouches_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data A is finished, B is stopped before its first state, A is asked for again."""
    first = write(tmp_path, iter(EXAMPLES[:300]))
    wanted = list(first)
    monkeypatch.setattr(module, "CHUNK", 300)
    parts = iter([True, False])

    def dying(examples: list[Example]) -> list[Encoded]:
        if not next(parts):
            raise KeyboardInterrupt
        return [Encoded(e.index, [9] * 40, [False] + [True] * 39, 1) for e in examples]

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, encode=dying, identity={"source": "b"})
    assert list(write(tmp_path, iter(EXAMPLES[:300]))) == wanted


def test_a_part_of_an_example_is_that_of_the_whole(tmp_path: Path) -> None:
    for masked, encoding in ((True, encode), (False, learnt_whole)):
        found = write(tmp_path / str(masked), encode=encoding, masked=masked)
        for places in (range(1200), range(5, 900, 7)):
            some = Subset(found, places)
            for place in (0, 1, 9, 100):
                whole = some[place]
                for first, last in ((0, 2), (1, 3), (1, 10_000), (0, None)):
                    part = some.part(place, first, last)
                    assert part.token_ids == whole.token_ids[first:last]
                    assert part.supervised == whole.supervised[first:last]
                    assert part.index == whole.index


def test_a_long_document_is_not_read_whole_for_each_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [number % 50_000 for number in range(20_000)]
    long = Encoded(0, ids, [False] + [True] * (len(ids) - 1), 1)
    one = iter([Example(0, (), "long")])
    found = write(tmp_path, one, encode=lambda _: [long], masked=False)
    monkeypatch.setattr(Corpus, "__getitem__", None)
    fitted = fit(found, 1024, split_long=True)
    rows = [fitted.row(found, [document]) for document in range(len(fitted.places))]
    assert [token for row in rows for token in row.token_ids] == ids


def endless(read: list[int]) -> Iterator[Example]:
    while True:
        read.append(len(read))
        yield Example(read[-1], (), f"text {read[-1]}")


def test_an_endless_source_is_read_just_far_enough(tmp_path: Path) -> None:
    read: list[int] = []
    found = write(tmp_path, endless(read), enough=Enough(tokens=5000, further=30))
    lengths = [len(item.token_ids) for item in found]
    assert sum(lengths[:-30]) >= 5000 > sum(lengths[:-31])
    assert len(read) <= len(found) + module.CHUNK
    # A source that ends before it is enough is simply used up.
    assert len(write(tmp_path / "short", iter(EXAMPLES[:9]), enough=Enough(5000, 3))) == 9


def test_a_full_disk_is_told_and_what_was_written_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 300)
    monkeypatch.setattr(module, "STATE_SECONDS", 0.0)

    class FullDisk:
        def __init__(self, file: Any, left: int) -> None:
            self.file, self.left = file, left

        def write(self, data: bytes) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    enter = module._Writer.__enter__

    def entered(writer: Any) -> Any:
        enter(writer)
        writer._files["tokens"] = FullDisk(writer._files["tokens"], 2 * 7 * 900)
        return writer

    with monkeypatch.context() as patch:
        patch.setattr(module._Writer, "__enter__", entered)
        with pytest.raises(StoreError, match="disk is full"):
            write(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
    assert state["documents"] >= 600
    assert list(write(tmp_path)) == encode(EXAMPLES)


def test_no_example_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no training examples; check data\.train"):
        write(tmp_path, iter([]))


@pytest.mark.parametrize("encoding", [encode, learnt_whole])
@pytest.mark.parametrize("split_long", [True, False, "texts"])
def test_packing_from_the_disk_is_packing_from_memory(
    tmp_path: Path, encoding: Any, split_long: Any
) -> None:
    found = write(tmp_path, encode=encoding, masked=encoding is encode)
    settings: dict[str, Any] = {"overlong": "truncate", "split_long": split_long}
    assert fit(found, 8, **settings) == fit(encoding(EXAMPLES), 8, **settings)
    assert pack(found, 64, seed=1) == pack(encoding(EXAMPLES), 64, seed=1)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    long = [Encoded(i, [i] * 4000, [False] + [True] * 3999, 1) for i in range(300)]
    rows = (Example(i, (), str(i)) for i in range(300))
    found = write(tmp_path, rows, encode=lambda part: [long[e.index] for e in part], masked=False)
    tracemalloc.start()
    fitted = fit(found, 1024, split_long=True)
    row = fitted.row(found, [0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(row.token_ids) == 1024
    # 1.2 million tokens as lists of Python would be 10 MB and more.
    assert peak < 1_000_000


# ----- several processes -----

ROOT = Path(__file__).resolve().parents[2]


def files_of(folder: Path) -> dict[str, bytes]:
    """Its files; a kill within a write may leave an unfinished one, named with a dot before."""
    every = (path for path in folder.iterdir() if path.name != "state.json")
    return {path.name: path.read_bytes() for path in every if path.name[0] != "."}


@pytest.fixture
def _in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes from the start, many parts."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(module, "ALONE_SECONDS", 0.0)
    monkeypatch.setattr(module, "CHUNK", 70)


@pytest.mark.usefixtures("_in_processes")
@pytest.mark.parametrize("regime", ["instruct", "pretrain"])
def test_several_processes_write_what_one_writes(
    tmp_path: Path, tiny_tokenizer: Any, regime: Any
) -> None:
    encoder = ExampleEncoder(tiny_tokenizer, "chat", regime)
    common: dict[str, Any] = {"encode": encoder.to_learn, "masked": regime == "instruct"}
    for name, enough in {"all": None, "enough": Enough(9000, 40)}.items():
        settings = {**common, "enough": enough, "vocabulary": 512}
        write(tmp_path / name / "one", **settings)
        write(tmp_path / name / "two", workers=2, **settings)
        wanted = files_of(tmp_path / name / "one")
        assert len(wanted) == 4 + common["masked"]
        assert files_of(tmp_path / name / "two") == wanted


WRITER = """
import sys
from pathlib import Path
from laura.data import corpus
from laura.data.formats import Columns
from laura.data.named import NAMED, TRAIN, KnownSet
from laura.data.sources import stream_examples
from laura.recipe.sections import Source
from laura.study.material import ExampleEncoder
from tests.conftest import make_tiny_tokenizer

out, workers, source, folder = sys.argv[1:]
corpus.STATE_SECONDS, corpus.ALONE_SECONDS, corpus.CHUNK = 0.0, 0.0, 50
NAMED["on-the-hub"] = KnownSet(folder, "texts", TRAIN, columns=Columns(text="text"))
encoder = ExampleEncoder(make_tiny_tokenizer(), "chat", "pretrain")
texts = stream_examples(Source(source=source, streaming=True))
corpus.write_corpus(
    Path(out), encoder.identity, texts, encoder.to_learn,
    vocabulary=512, masked=False, workers=int(workers), enough=corpus.Enough(500_000, 200),
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_a_killed_command_continues_to_the_same_files(tmp_path: Path, kind: str) -> None:
    """From a folder of Parquet files, and as a stream of `datasets` of which only the address is
    another one."""
    folder = tmp_path / "set"
    texts = [f"The cat ran {i} times to the apple. " * (i % 40 + 1) for i in range(4000)]
    write_set(folder, {f"train-{n}": texts[1000 * n : 1000 * (n + 1)] for n in range(4)})
    source = str(folder / "texts") if kind == "folder" else "on-the-hub"

    def start(name: str, workers: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WRITER, tmp_path / name, str(workers), source, folder]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "HF_HOME": str(tmp_path)})

    assert start("whole", 1).wait() == 0
    state, reached = tmp_path / "killed" / "state.json", 0
    for _ in range(3):
        process, before = start("killed", 2), reached
        while reached == before and process.poll() is None:
            time.sleep(0.01)
            if state.exists():
                reached = max(before, json.loads(state.read_text())["documents"])
        process.kill()
        process.wait()
        assert before < reached < 4000
    assert start("killed", 2).wait() == 0
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_what_tokenises_needs_no_torch(tiny_tokenizer: Any) -> None:
    """It would cost every process a second and 200 MB."""
    code = "import pickle, sys; pickle.load(sys.stdin.buffer)([]); print('torch' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(ExampleEncoder(tiny_tokenizer, "chat", "instruct").to_learn),
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert told.stdout == b"False\n"


def test_what_came_before_a_worker_ended_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ALONE_SECONDS", 0.0)

    def dying(pack: Any, parts: Iterator[Any], workers: int) -> Iterator[Any]:
        yield pack(next(parts))
        raise StoreError("a worker process ended by signal SIGKILL")

    with monkeypatch.context() as patch:
        patch.setattr(module, "map_in_order", dying)
        with pytest.raises(StoreError, match="worker process ended"):
            write(tmp_path, workers=2)
    assert json.loads((tmp_path / "state.json").read_text())["documents"] == module.CHUNK
    assert list(write(tmp_path)) == encode(EXAMPLES)


def test_little_data_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "map_in_order", None)
    assert len(write(tmp_path / "little", workers=2)) == 1200
    monkeypatch.setattr(module, "ALONE_SECONDS", 0.0)
    with pytest.raises(TypeError, match="not callable"):
        write(tmp_path / "much", workers=2)


def test_long_examples_are_tokenised_a_few_at_a_time(tmp_path: Path) -> None:
    sizes = []

    def seen(examples: list[Example]) -> list[Encoded]:
        sizes.append(len(examples))
        return encode(examples)

    long = [Example(i, (), "x" * (module.CHUNK_CHARACTERS // 2)) for i in range(7)]
    write(tmp_path, iter(long), encode=seen)
    assert sizes == [2, 2, 2, 1]
