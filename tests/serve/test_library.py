"""The adapters folder: what is offered, what is refused, and that nothing else is harmed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from laura.models.adapter_files import read_settings
from laura.models.signatures import SIGNATURE, PublicKey, sign_folder
from laura.results.errors import StoreError
from laura.serve import library as library_module
from laura.serve.library import (
    AdapterRefusedError,
    Library,
    Policy,
    UnknownAdapterError,
    read_checked,
)
from tests.models.test_signatures import keys
from tests.serve.adapter_folders import (
    BASE,
    CASES,
    CONFIG,
    LINEARS,
    MODULES,
    PAIR,
    RECORD,
    SETTINGS,
    WEIGHTS,
    ZEROS,
    Case,
    raw,
    record,
    refusals,
    tensors,
    write,
)
from tests.test_record import VALUE

SILENT = Policy(unrecorded="allow")


def make(folder: Path, **options: Any) -> Library:
    return Library(folder, BASE, **{"policy": SILENT, "max_bytes": 2**30, **options})


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail instead of waiting for ever, as on a pipe."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every path below a folder with what a change would change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        found[str(path)] = (facts.st_mode, facts.st_size, facts.st_mtime_ns)
    return found


def open_files() -> int | None:
    """How many descriptors this process holds, where the system tells."""
    place = Path("/proc/self/fd")
    return len(list(place.iterdir())) if place.is_dir() else None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A library with one good adapter, beside a folder that is nobody's business."""
    record(write(tmp_path / "library" / "good"))
    record(write(tmp_path / "outside"))
    return tmp_path / "library"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_adapter_is_refused_and_harms_nobody(case: Case, folder: Path) -> None:
    library = make(folder)
    good = library.open("good")
    case.make(folder / "bad")
    before, held = tree(folder.parent), open_files()
    library.rescan()
    with at_most(60):
        for _ in range(2):
            with pytest.raises(AdapterRefusedError, match=case.words) as caught:
                library.open("bad")
            told = str(caught.value)
            assert library.entry("bad").refused == told
        assert told.isprintable() and len(told) <= 600
        assert str(folder.parent) not in told
        assert library.names() == ["bad", "good"]
        assert library.entry("good").refused is None
        assert library.open("good") == good
        _, found = read_checked(good)
    assert set(found) == set(tensors())
    assert (tree(folder.parent), open_files()) == (before, held)
    assert not Path("a-pickle-was-opened").exists()


def test_what_the_hostile_headers_were_made_from_is_whole(folder: Path) -> None:
    write(folder / "pair", raw(PAIR, ZEROS))
    settings, found = read_checked(make(folder).open("pair"))
    assert settings.targets == (MODULES[0],)
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        name: tuple(entry["shape"]) for name, entry in PAIR.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_is_whole_is_read_as_safetensors_reads_it(folder: Path, dtype: torch.dtype) -> None:
    write(
        folder / "other", save(tensors(3, dtype=dtype)), alpha_pattern={r"0\.self_attn.q_proj": 2}
    )
    library = make(folder)
    files = library.open("other")
    settings, found = read_checked(files)
    expected = load_file(folder / "other" / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(tensor.dtype == dtype for tensor in found.values())
    assert settings == read_settings(folder / "other")
    assert settings.for_module(MODULES[0]) == (4, 0.5)
    assert settings.for_module(MODULES[1]) == (4, 2.0)
    size = (folder / "other" / WEIGHTS).stat().st_size
    assert (files.name, files.folder, files.rank, files.bytes) == (
        "other", folder / "other", 4, size,
    )  # fmt: skip


def test_an_entry_tells_what_is_known_before_and_after_reading(folder: Path) -> None:
    library = make(folder)
    entry = library.entry("good")
    facts = (folder / "good" / WEIGHTS).stat()
    assert (entry.name, entry.rank, entry.bytes) == ("good", 4, facts.st_size)
    assert (entry.created, entry.refused) == (int(facts.st_mtime), None)
    assert entry.record is not None and entry.record.study == "s"
    assert entry.warnings == ()
    write(folder / "plain", base_model_name_or_path="some/where\x1b[31m")
    warned = make(folder, policy=Policy()).entry("plain")
    assert warned.record is None and warned.refused is None
    assert warned.warnings == (
        "its base is not verified, as it has no laura.json: its configuration says "
        r"'some/where\x1b[31m'",
        "it has no laura.json, so what it learned and forgot is not known",
    )
    blind = Library(folder, library_module.BaseFacts("tiny", None, LINEARS)).entry("good")
    assert blind.warnings == (
        "its base is not verified, as the hash of the served base is not known",
    )
    base = {**VALUE["base"], "fingerprint": BASE.fingerprint, "quantization": "nf4"}
    record(folder / "good", {"base": base})
    (held,) = make(folder).entry("good").warnings
    assert "measured on its base in nf4" in held


@pytest.mark.parametrize("name", [
    "", ".", "..", "../outside", "good/../../outside", "/etc", "good/", "good\0", "good\n", "Good",
    "GOOD", "ｇood", "g\u043e\u043ed", "good ", " good", "goo\u0064\u0301", "~", "$HOME", "good*",
    "x" * 10**6, "\ud800", "\x1b[2J", "..%2foutside", "\\outside", "con", "outside",
], ids=lambda name: ascii(name[:20]))  # fmt: skip
def test_a_name_that_is_asked_for_is_looked_up_and_nothing_else(folder: Path, name: str) -> None:
    library = make(folder)
    for call in (library.entry, library.open):
        with pytest.raises(UnknownAdapterError, match="there is no adapter '") as caught:
            call(name)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 200
    assert library.names() == ["good"]


@pytest.mark.parametrize("name", [
    ".hidden", "-rf", "_x", "a b", "a\x1b[2Jb", "ａ", "gооd", "a" * 129, "a'b", "a;b", "a\\b",
    "a\nb", "a\u202eb", "%2e%2e", "~",
], ids=ascii)  # fmt: skip
def test_a_folder_that_cannot_be_named_is_passed_over_and_told(folder: Path, name: str) -> None:
    write(folder / name)
    library = make(folder)
    assert library.names() == ["good"]
    (note,) = library.notes
    assert "is no name of an adapter" in note and note.isprintable() and len(note) < 400
    with pytest.raises(UnknownAdapterError):
        library.open(name)


def test_a_whole_model_is_no_adapter_and_that_is_told(folder: Path) -> None:
    (folder / "winner").mkdir()
    (folder / "winner" / "config.json").write_text("{}")
    library = make(folder)
    assert library.names() == ["good"]
    assert library.notes == (
        "'winner' holds a whole model, not an adapter; serve it as a base of its own: laura serve "
        f"{folder}/winner",
    )
    alone = make(folder / "winner")
    assert alone.names() == [] and alone.notes == library.notes


def test_names_that_differ_in_case_alone_are_refused_but_for_who_was_first(folder: Path) -> None:
    library = make(folder)
    files = library.open("good")
    record(write(folder / "GOOD"))
    if len(list(folder.iterdir())) < 2:
        pytest.skip("this file system ignores case")
    library.rescan()
    assert library.open("good") == files
    with pytest.raises(AdapterRefusedError, match="GOOD differs from good in upper and lower case"):
        library.open("GOOD")
    afresh = make(folder)
    for name in ("good", "GOOD"):
        with pytest.raises(AdapterRefusedError, match="in upper and lower case only"):
            afresh.open(name)
        assert afresh.entry(name).refused
    (folder / "GOOD").rename(folder / "other")
    afresh.rescan()
    assert afresh.open("good") == files and afresh.open("other").digest == files.digest


def test_the_bases_name_is_taken(folder: Path) -> None:
    write(folder / "Tiny")
    with pytest.raises(AdapterRefusedError, match="Tiny has the name of the base"):
        make(folder).open("Tiny")


def test_adapters_come_change_and_go(folder: Path) -> None:
    library = make(folder)
    first = library.open("good")
    write(folder / "new")
    with pytest.raises(UnknownAdapterError):
        library.open("new")
    library.rescan()
    assert library.names() == ["good", "new"]
    (folder / "good" / RECORD).unlink()
    (folder / "good" / WEIGHTS).write_bytes(save(tensors(1)))
    second = library.open("good")
    assert second.digest != first.digest and library.entry("good").record is None
    (folder / "good").rename(folder.parent / "gone")
    for call in (library.open, library.open):
        with pytest.raises(AdapterRefusedError, match="good cannot be read"):
            call("good")
    (folder.parent / "gone").rename(folder / "good")
    assert library.open("good") == second, "what the system refused is asked again"
    (folder / "good").rename(folder.parent / "gone")
    library.rescan()
    assert library.names() == ["new"]
    with pytest.raises(UnknownAdapterError):
        library.entry("good")


def test_a_folder_that_is_an_adapter_itself_and_none(tmp_path: Path) -> None:
    write(tmp_path / "alone")
    library = make(tmp_path / "alone")
    assert library.names() == ["alone"] and library.open("alone").folder == tmp_path / "alone"
    (tmp_path / "link").symlink_to("alone")
    assert make(tmp_path / "link").names() == ["alone"], "the library itself may be a link"
    write(tmp_path / "alone" / "alone")
    twice = make(tmp_path / "alone")
    assert twice.names() == ["alone"] and "twice" in twice.notes[0]
    none = Library(None, BASE)
    none.rescan()
    assert none.names() == [] and refusals(none) == {}
    with pytest.raises(StoreError, match=r"adapters folder .* cannot be read"):
        make(tmp_path / "nowhere")


def test_a_library_that_vanishes_keeps_what_was_known(folder: Path) -> None:
    library = make(folder)
    folder.rename(folder.parent / "moved")
    with pytest.raises(StoreError, match="cannot be read"):
        library.rescan()
    assert library.names() == ["good"]


def test_what_the_reader_may_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, system = make(folder), os.open
    monkeypatch.setattr(library_module, "TICK_NS", -(10**18))

    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if path == WEIGHTS:
            raise PermissionError(13, "Permission denied")
        return system(path, flags, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(AdapterRefusedError, match=r"good/adapter.* \(Permission denied"):
            library.open("good")
    assert library.open("good"), "it is asked again, without a rescan"


def test_a_device_is_not_opened(folder: Path) -> None:
    write(folder / "device")
    (folder / "device" / WEIGHTS).unlink()
    try:
        os.mknod(folder / "device" / WEIGHTS, 0o600 | 0o020000, os.makedev(1, 5))  # as /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")
    with at_most(60), pytest.raises(AdapterRefusedError, match="is a device, not a regular file"):
        make(folder).open("device")


def test_a_file_changed_within_a_tick_of_the_clock_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, path = make(folder), folder / "good" / WEIGHTS
    (folder / "good" / RECORD).unlink()
    size = path.stat().st_size
    same = (0, 0, size, 0, time.time_ns())  # a file system whose clock stands still
    monkeypatch.setattr(library_module, "marks", lambda opened: (same, same, None))
    digests = set()
    for seed in range(5):
        path.write_bytes(save(tensors(seed)))
        digests.add(library.open("good").digest)
    assert len(digests) == 5
    monkeypatch.setattr(library_module, "TICK_NS", 0)
    kept = library.open("good")
    path.write_bytes(save(tensors(77)))
    assert library.open("good") == kept, "long after its change a file is relied on"


def test_a_file_changed_while_another_asks_is_not_remembered_as_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, real = make(folder), library_module.read_through
    monkeypatch.setattr(library_module, "TICK_NS", -(10**18))
    (folder / "good" / RECORD).unlink()

    def slow(*arguments: Any) -> str:
        digest = real(*arguments)
        (folder / "good" / WEIGHTS).write_bytes(save(tensors(5, rank=8)))
        assert library.entry("good").rank == 8
        return digest

    with monkeypatch.context() as patched:
        patched.setattr(library_module, "read_through", slow)
        old = library.open("good")
    new = library.open("good")
    assert (old.rank, new.rank) == (4, 8) and old.digest != new.digest


def test_the_policy_is_applied(folder: Path) -> None:
    with pytest.raises(AdapterRefusedError, match=r"^good: it may have forgotten more than --max-"):
        make(folder, policy=Policy(max_forgetting=0.2)).open("good")
    warned = make(folder, policy=Policy(max_forgetting=0.2, action="warn"))
    assert warned.open("good") and "--max-forgetting 0.2" in warned.entry("good").warnings[0]
    write(folder / "plain")
    with pytest.raises(AdapterRefusedError, match=r"^plain: it has no laura.json"):
        make(folder, policy=Policy(unrecorded="refuse")).open("plain")


def test_only_what_the_key_signed_is_served(tmp_path: Path) -> None:
    """Each file that is read is the signed one, whatever else lies in the folder."""
    private, public = keys(tmp_path)
    shelf = tmp_path / "shelf"

    def spoiled(name: str, spoil: Callable[[Path], object], signed: bool = True) -> None:
        record(write(shelf / name))
        if signed:
            sign_folder(shelf / name, private)
        spoil(shelf / name)

    spoiled("good", lambda folder: None)
    spoiled("more", lambda folder: (folder / "README.md").write_text("read by nobody"))
    spoiled("bare", lambda folder: None, signed=False)
    spoiled("forged", lambda folder: sign_folder(folder, keys(shelf / "forged")[0]))
    spoiled("config", lambda folder: (folder / CONFIG).write_text(json.dumps(SETTINGS)[:-1] + " }"))
    spoiled("record", lambda folder: record(folder, {"study": "another"}))
    spoiled("unrecorded", lambda folder: (folder / RECORD).unlink())
    spoiled(
        "linked", lambda f: (f / SIGNATURE).rename(f / "x").with_name(SIGNATURE).symlink_to("x")
    )
    spoiled("huge", lambda folder: os.truncate(folder / SIGNATURE, 2**31))
    write(shelf / "weights")
    sign_folder(shelf / "weights", private)
    (shelf / "weights" / WEIGHTS).write_bytes(save(tensors(seed=1)))
    library = Library(shelf, BASE, policy=Policy(unrecorded="allow", key=PublicKey(public)))
    told = refusals(library)
    words = {
        "bare": "has no model.sig, and a signature is required",
        "forged": "made with another key than the required one",
        "config": "adapter_config.json is not the one that was signed",
        "record": "laura.json is not the one that was signed",
        "unrecorded": "laura.json was signed and is not there",
        "linked": "a link, not a regular file",
        "huge": "2147483648 bytes, allowed are",
        "weights": "adapter_model.safetensors is not the one that was signed",
    }
    assert told.keys() == words.keys()
    assert not [name for name, word in words.items() if word not in told[name]]
    # A signature that comes later is seen, and one that goes too.
    sign_folder(shelf / "bare", private)
    assert library.open("bare")
    (shelf / "bare" / SIGNATURE).unlink()
    with pytest.raises(AdapterRefusedError, match=r"has no model\.sig"):
        library.open("bare")


def test_limits_are_the_servers_own(folder: Path) -> None:
    with pytest.raises(AdapterRefusedError, match=r"rank 4 .* limit of 3"):
        make(folder, max_rank=3).open("good")
    with pytest.raises(AdapterRefusedError, match="bytes, allowed are 1000; nothing of it was"):
        make(folder, max_bytes=1000).open("good")
