"""One adapter's files: what was checked is what is loaded, and little memory is needed."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from laura.models import adapter_files
from laura.models.adapter_files import BaseFacts, base_facts, linear_shapes
from laura.models.adapters import attach, load_adapter, save_adapter
from laura.models.lora import LoraSettings, detach, lora_layers
from laura.models.safe_files import ReadOnce
from laura.results.errors import AdapterError
from laura.serve.engines import AdapterFiles
from laura.serve.library import AdapterRefusedError, Library, Policy, read_checked
from tests.serve.adapter_folders import (
    BASE,
    CONFIG,
    RECORD,
    WEIGHTS,
    key,
    record,
    refusals,
    sparse,
    tensors,
    write,
)


def library_of(folder: Path, base: BaseFacts = BASE, **options: Any) -> Library:
    return Library(folder, base, policy=Policy(unrecorded="allow"), **options)


@pytest.fixture
def checked(tmp_path: Path) -> AdapterFiles:
    record(write(tmp_path / "one"))
    return library_of(tmp_path).open("one")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / WEIGHTS).write_bytes(save(tensors(1))), "changed since it was checked"),
        (lambda f: (f / WEIGHTS).write_bytes(save(tensors(0, 8))), "changed since it was checked"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), "changed since it was checked"),
        (lambda f: os.truncate(f / WEIGHTS, 100), "changed since it was checked"),
        (lambda f: (f / CONFIG).write_text((f / CONFIG).read_text() + " "), "since it was checked"),
        (lambda f: (f / CONFIG).write_text("{}"), "changed since it was checked"),
        (lambda f: sparse(f / CONFIG, 2**30), "bytes, allowed are 1048576"),
        (lambda f: sparse(f / WEIGHTS, 2**40), "changed since it was checked"),
        (lambda f: (f / WEIGHTS).unlink(), "cannot be read"),
        (lambda f: f.rename(f.with_name("two")), "cannot be read"),
        (lambda f: swap(f, lambda p: p.symlink_to("../two")), "one is a link, not a folder"),
        (lambda f: swap(f / WEIGHTS, os.mkfifo), "is a pipe, not a regular file"),
        (lambda f: swap(f / WEIGHTS, lambda p: p.symlink_to("elsewhere")), "is a link"),
    ],
)
def test_what_changed_after_the_check_is_not_loaded(
    checked: AdapterFiles, change: Callable[[Path], object], words: str
) -> None:
    read_checked(checked)
    change(checked.folder)
    with pytest.raises(AdapterError, match=words) as caught:
        read_checked(checked)
    assert str(checked.folder.parent) not in str(caught.value)


def swap(path: Path, put_there: Callable[[Path], object]) -> None:
    path.rename(path.with_name("elsewhere" if path.name == WEIGHTS else "two"))
    put_there(path)


def test_the_record_may_change_without_making_it_another_adapter(checked: AdapterFiles) -> None:
    (checked.folder / RECORD).unlink()
    read_checked(checked)


@pytest.mark.parametrize("when", ["grows", "shrinks", "is written over"])
def test_a_file_that_moves_while_it_is_read(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "one") / WEIGHTS
    library, real, calls = library_of(tmp_path), ReadOnce.fill, []
    whole = path.read_bytes()
    os.utime(path, (0, 0))  # the clock of the file system may be coarser than this test is fast

    def fill(self: ReadOnce, buffer: memoryview) -> None:
        real(self, buffer)
        if self.label.name == WEIGHTS and len(calls) == 3:
            if when == "shrinks":
                os.truncate(path, 500)
            else:
                with path.open("ab" if when == "grows" else "r+b") as file:
                    file.write(b"more")
        calls.append(len(buffer))

    monkeypatch.setattr(ReadOnce, "fill", fill)
    with pytest.raises(AdapterRefusedError, match="safetensors changed while it was read; write"):
        library.open("one")
    monkeypatch.undo()
    path.write_bytes(whole)
    assert library.open("one"), "it is looked at again"


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_file_replaced_between_the_two_steps(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = write(tmp_path / "one"), adapter_files.outline

    def outline(*arguments: Any) -> adapter_files.Outline:
        found = real(*arguments)
        if file == CONFIG:
            (folder / CONFIG).write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 99}')
        else:
            (folder / WEIGHTS).write_bytes(save(tensors(rank=8)))
        return found

    library = library_of(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("laura.serve.library.outline", outline)
        with pytest.raises(AdapterRefusedError, match="changed while it was read"):
            library.open("one")
    assert library.open("one").rank == (8 if file == WEIGHTS else 4)


def test_memory_of_checking_and_of_reading(tmp_path: Path) -> None:
    base = BaseFacts("wide", None, {"wide": (16384, 16384)})
    weights = {key("wide", "lora_A.weight"): torch.ones(256, 16384) * 0.01,
               key("wide", "lora_B.weight"): torch.ones(16384, 256) * 0.01}  # fmt: skip
    size = len(write(tmp_path / "one", save(weights)).joinpath(WEIGHTS).read_bytes())
    assert size > 2**25
    library = library_of(tmp_path, base)
    tracemalloc.start()
    try:
        files = library.open("one")
        _, checking = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        _, found = read_checked(files)
        _, reading = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert checking < 2**20
    assert reading < size + 2**20
    # Torch's own memory is not traced: the tensors lie in the one buffer.
    begin = min(tensor.data_ptr() for tensor in found.values())
    end = max(tensor.data_ptr() + tensor.nbytes for tensor in found.values())
    assert end - begin == sum(tensor.nbytes for tensor in found.values())


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ((-1, -1), float("nan"), r"lora_B\.weight is not finite"),
        ((0, 0), 1e30, r"lora_B\.weight reaches 1e\+30"),
        ((-1, -1), -1e30, r"lora_B\.weight reaches 1e\+30"),
    ],
)
def test_a_fault_at_either_end_of_a_large_tensor_is_found(
    tmp_path: Path, place: tuple[int, int], value: float, words: str
) -> None:
    base = BaseFacts("wide", None, {"wide": (16384, 16384)})
    weights = {key("wide", "lora_A.weight"): torch.zeros(256, 16384),
               key("wide", "lora_B.weight"): torch.zeros(16384, 256)}  # fmt: skip
    weights[key("wide", "lora_B.weight")][place] = value
    write(tmp_path / "one", save(weights))
    with pytest.raises(AdapterRefusedError, match=words):
        library_of(tmp_path, base).open("one")


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_let_through_reads_as_safetensors_reads_it(tmp_path: Path, seed: int) -> None:
    """Random damage: either refused, or the format's own library gives the same numbers."""
    generator, whole = random.Random(seed), save(tensors(seed))
    start = int.from_bytes(whole[:8], "little") + 8
    passed = 0
    for attempt in range(40):
        content = bytearray(whole)
        for _ in range(generator.choice([1, 1, 1, 4])):
            # Often in the header, where a change means most.
            place = generator.randrange(start if generator.random() < 0.5 else len(content))
            content[place] = generator.choice([generator.randrange(256), *b'0123456789",[]:{}'])
        if generator.random() < 0.2:
            del content[generator.randrange(len(content)) :]
        name = f"n{attempt}"
        write(tmp_path / name, bytes(content))
    library = library_of(tmp_path)
    refused = refusals(library)
    for name in library.names():
        content = (tmp_path / name / WEIGHTS).read_bytes()
        if name in refused:
            continue
        passed += 1
        _, found = read_checked(library.open(name))
        expected = load(content)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    assert 0 < passed < 40
    for name in refused:
        try:
            load((tmp_path / name / WEIGHTS).read_bytes())
        except (SafetensorError, KeyError):
            continue
        # Readable all the same: then its names, shapes or numbers are wrong.
        assert "is damaged (a header of" not in refused[name]


def test_the_whole_way_equals_the_plain_loader(tiny_folder: Path, tmp_path: Path) -> None:
    from tests.conftest import make_tiny_model

    model, plain = make_tiny_model(), make_tiny_model()
    settings = LoraSettings(rank=4, alpha=8, targets="all", rslora=True)
    attach(model, settings, seed=1)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.B, std=0.1)
    save_adapter(model, tmp_path / "one", settings, "tiny")
    detach(model)
    files = library_of(tmp_path, base_facts(tiny_folder)).open("one")
    assert load_adapter(plain, tmp_path / "one") == read_checked(files)[0]
    found, read = read_checked(files)
    attach(model, found, seed=0)
    for name, layer in lora_layers(model).items():
        layer.A.data[0] = read[f"base_model.model.{name}.lora_A.weight"]
        layer.B.data[0] = read[f"base_model.model.{name}.lora_B.weight"]
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, plain(ids).logits)


def test_trained_lengths_are_not_served(tiny_model: Any, tmp_path: Path) -> None:
    settings = LoraSettings(rank=4, targets=("q_proj",), dora=True)
    attach(tiny_model, settings, seed=0)
    save_adapter(tiny_model, tmp_path / "one", settings, "tiny")
    detach(tiny_model)
    with pytest.raises(AdapterRefusedError, match=r"trained lengths \(DoRA\), which this server"):
        library_of(tmp_path, BaseFacts("tiny", None, linear_shapes(tiny_model))).open("one")


def test_facts_of_a_base(tiny_folder: Path) -> None:
    from laura.models.load import fingerprint, load_base

    facts = base_facts(tiny_folder)
    base = load_base(str(tiny_folder), device="cpu")
    assert (facts.name, facts.fingerprint) == ("tiny-llama", base.fingerprint)
    assert facts.fingerprint == fingerprint(tiny_folder)
    linears = {n: m for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert facts.linears == {name: tuple(m.weight.shape) for name, m in linears.items()}
    assert base_facts(tiny_folder, name="mine", fingerprint="known").fingerprint == "known"
    assert base_facts(tiny_folder, name="mine").name == "mine"
