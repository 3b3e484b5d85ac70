"""Adapters written without Laura's own writer, whole and hostile, for the tests of the library."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from laura.models.adapter_files import BaseFacts
from laura.serve.library import AdapterRefusedError, Library
from tests.test_record import VALUE

CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "laura.json"
RANK = 4
LINEARS = {
    f"model.layers.{layer}.self_attn.{kind}": (rows, 64)
    for layer in range(2)
    for kind, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64))
}
BASE = BaseFacts("tiny", "f" * 64, LINEARS)
SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "tiny",
    "r": RANK,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
}
MODULES = [name for name in LINEARS if name.endswith(("q_proj", "v_proj"))]


def key(module: str, part: str) -> str:
    """Name of a tensor in the file."""
    return f"base_model.model.{module}.{part}"


A, B = key(MODULES[0], "lora_A.weight"), key(MODULES[0], "lora_B.weight")
OFT = key(MODULES[0], "oft_R.weight")


def tensors(
    seed: int = 0, rank: int = RANK, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random weights of an adapter on q and v."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in MODULES:
        rows, columns = LINEARS[name]
        for part, shape in (("lora_A.weight", (rank, columns)), ("lora_B.weight", (rows, rank))):
            made[key(name, part)] = torch.randn(shape, generator=generator).mul(0.1).to(dtype)
    return made


def write(folder: Path, weights: bytes | None = None, **settings: Any) -> Path:
    """Write a whole adapter, or one with other weights or settings."""
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(SETTINGS | settings))
    (folder / WEIGHTS).write_bytes(save(tensors()) if weights is None else weights)
    return folder


def record(folder: Path, changes: dict[str, Any] | None = None) -> None:
    """Write the laura.json that belongs to the folder, or one with other entries."""
    value = copy.deepcopy(VALUE)
    value["base"]["fingerprint"] = BASE.fingerprint
    value["weights"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)
    }
    (folder / RECORD).write_text(json.dumps(value | (changes or {})))


def refusals(library: Library) -> dict[str, str]:
    """Check every adapter through; why, by name, those that are not served are not."""
    refused = {}
    for name in library.names():
        try:
            library.open(name)
        except AdapterRefusedError as error:
            refused[name] = str(error)
    return refused


def raw(header: Any, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file with any header and any length said of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    """A header's entry of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


PAIR = {A: entry([4, 64], 0, 1024), B: entry([64, 4], 1024, 2048)}
ZEROS = bytes(2048)


class Payload:
    """What a pickle would run when it is opened."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("a-pickle-was-opened",)


@dataclass(frozen=True)
class Case:
    """A hostile adapter: how it is made, and the words that refuse it."""

    name: str
    make: Callable[[Path], object]
    words: str


CASES: list[Case] = []


def case(name: str, words: str) -> Callable[[Callable[[Path], object]], None]:
    """Enter a function that makes a hostile adapter in a folder that is not there yet."""
    return lambda make: CASES.append(Case(name, make, words))


def weights_case(name: str, content: Callable[[], bytes] | bytes, words: str) -> None:
    """Enter an adapter whose weights are these bytes."""
    CASES.append(
        Case(name, lambda f: write(f, content if isinstance(content, bytes) else content()), words)
    )


def changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[], bytes]:
    """The bytes of an adapter whose tensors are changed."""

    def made() -> bytes:
        found = tensors()
        change(found)
        return save(found)

    return made


def put(value: float, place: tuple[int, int] = (3, 63), dtype: Any = None) -> Callable[[], bytes]:
    """One number of one tensor replaced."""

    def change(found: dict[str, Tensor]) -> None:
        found[A] = found[A].to(dtype or torch.float32)
        found[A][place] = value

    return changed(change)


def header_case(name: str, changes: dict[str, Any], words: str, data: bytes = ZEROS) -> None:
    """Enter an adapter whose weights have a header with these entries."""
    weights_case(name, raw(PAIR | changes, data), words)


def settings_case(name: str, changes: dict[str, Any], words: str) -> None:
    """Enter an adapter with these settings."""
    CASES.append(Case(name, lambda folder: write(folder, **changes), words))


def text_case(name: str, file: str, content: Callable[[], bytes] | bytes, words: str) -> None:
    """Enter an adapter one of whose files has other content."""

    def make(folder: Path) -> None:
        record(write(folder))
        (folder / file).write_bytes(content if isinstance(content, bytes) else content())

    CASES.append(Case(name, make, words))


def record_case(name: str, changes: dict[str, Any], words: str) -> None:
    """Enter an adapter with another record."""
    CASES.append(Case(name, lambda folder: record(write(folder), changes), words))


def instead(name: str, file: str, put_there: Callable[[Path], object], words: str) -> None:
    """Enter an adapter where something else stands in a file's place."""

    def make(folder: Path) -> None:
        record(write(folder))
        (folder / file).unlink()
        put_there(folder / file)

    CASES.append(Case(name, make, words))


def sparse(path: Path, size: int) -> None:
    """A file of any size that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)


def listen(path: Path) -> None:
    """A socket's file."""
    # Its path may be too long for the system's limit, a relative one is not.
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


# Not safetensors
@case("pickled weights alone", r"has no adapter_model.safetensors \(adapter_model.bin is pickled")
def _(folder: Path) -> None:
    write(folder)
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload()))


@case("torch's pickle renamed", "adapter_model.safetensors is a pickle, which can run code")
def _(folder: Path) -> None:
    write(folder)
    torch.save({"a": Payload()}, folder / WEIGHTS)


weights_case("a pickle renamed", pickle.dumps([Payload()] * 9), "is a pickle, which can run code")
weights_case("empty", b"", r"is damaged \(it has 0 bytes\)")
weights_case("seven bytes", b"1234567", r"is damaged \(it has 7 bytes\)")
weights_case("one byte cut off", lambda: save(tensors())[:-1], "bytes of data, its header says")
weights_case("cut in the header", lambda: save(tensors())[:99], "a header of .* at most 91 are")
weights_case("one byte more", lambda: save(tensors()) + b"\0", "bytes of data, its header says")
# The header's length and form
weights_case("length huge", raw(PAIR, ZEROS, 2**63), "a header of 9223372036854775808 bytes")
weights_case("length negative", raw(PAIR, ZEROS, 2**64 - 1), "a header of 18446744073709551615 by")
weights_case("length zero", raw(PAIR, ZEROS, 0), "is no usable JSON")
weights_case("length cuts the text", raw(PAIR, ZEROS, 9), "is no usable JSON")
weights_case("header too long", lambda: raw(b"{}" + b" " * 2**22, b""), "at most 4194304 are possi")
weights_case("header deep", lambda: raw(b'{"a":' * 99999 + b"1" + b"}" * 99999, b""), "no usable J")
weights_case("header a list", raw([PAIR], ZEROS), "the header is no object")
weights_case("header not UTF-8", raw(b'{"\xff": 1}', ZEROS), "no usable JSON .*utf-8")
weights_case(
    "a name twice",
    raw(json.dumps(PAIR).replace(B, A).encode(), ZEROS),
    "lora_A.weight' stands in it twice",
)
header_case("metadata of numbers", {"__metadata__": {"rank": 4}}, "__metadata__ holds something")
weights_case("no tensors", raw({"__metadata__": {}}, b""), "holds nothing; expected lora_A")
# Its offsets and shapes
header_case("overlap", {B: entry([64, 4], 1020, 2044)}, "lora_B.weight overlaps what is before")
header_case("the same bytes", {B: entry([64, 4], 0, 1024)}, "lora_B.weight overlaps what is bef")
header_case("a gap", {B: entry([64, 4], 1028, 2052)}, "lora_B.weight leaves a gap before it")
header_case("beyond the end", {B: entry([64, 8], 1024, 3072)}, "has 2048 bytes of data, its head")
header_case("negative offset", {A: entry([4, 64], -1024, 0)}, "values of a wrong type")
header_case("end before begin", {A: entry([4, 64], 1024, 0)}, "has -1024 bytes for shape")
header_case("offset a fraction", {A: entry([4, 64], 0.0, 1024)}, "values of a wrong type")
header_case("offset true", {A: entry([4, 64], 0, True)}, "values of a wrong type")
header_case("offset beyond 64 bits", {A: entry([4, 64], 0, 2**64)}, "values of a wrong type")
header_case("three offsets", {A: {**PAIR[A], "data_offsets": [0, 1, 2]}}, "has 3 offsets")
header_case("shape of other size", {A: entry([5, 64], 0, 1024)}, r"has 1024 bytes for shape \(5")
header_case("shape overflows", {A: entry([2**62, 4, 64], 0, 1024)}, "has 1024 bytes for shape")
header_case("many dimensions", {A: entry([1] * 9999, 0, 1024)}, "values of a wrong type")
header_case("shape a text", {A: entry(["4", 64], 0, 1024)}, "values of a wrong type")
header_case("an unknown key", {A: {**PAIR[A], "url": "x"}}, "not dtype, shape and data_offsets")
header_case("an entry of null", {A: None}, "not dtype, shape and data_offsets")
header_case(
    "not at a multiple",
    {A: entry([1, 1], 0, 2, "F16"), B: entry([2, 1], 2, 10)},
    "starts at byte 2, no multiple of 4",
    bytes(10),
)
# Types
for _dtype, _size in (("I32", 4), ("F8_E4M3", 1), ("C64", 8), ("BOOL", 1), ("F4", 1), ("x", 9)):
    _half = 256 * _size
    weights_case(
        f"type {_dtype}",
        raw(
            {
                A: entry([4, 64], 0, _half, _dtype),
                B: entry([64, 4], _half, 2 * _half, _dtype),
            },
            bytes(2 * _half),
        ),
        f"lora_A.weight is of type {_dtype}; allowed are F64, F32, F16, BF16; save it as float32",
    )
# Numbers
weights_case("NaN in one place", put(float("nan")), "lora_A.weight is not finite")
weights_case("infinity in one place", put(float("inf")), "lora_A.weight is not finite")
weights_case("-infinity first", put(float("-inf"), (0, 0)), "lora_A.weight is not finite")
weights_case("NaN in bfloat16", put(float("nan"), dtype=torch.bfloat16), "is not finite")
weights_case("NaN in float16", put(float("nan"), dtype=torch.float16), "is not finite")
weights_case("a number of 1e30", put(1e30), r"lora_A.weight reaches 1e\+30, above 65504")
weights_case("1e300 in float64", put(-1e300, dtype=torch.float64), r"reaches 1e\+300, above")
weights_case(
    "a product too large",
    changed(lambda t: (t[A].fill_(300.0), t[B].fill_(300.0))),
    r"the update of .*q_proj may reach 7.2e\+05 \(alpha included\)",
)
settings_case("alpha of 1e38", {"lora_alpha": 1e38}, "the update of .* may reach .* above 65504")


# OFT
@case("blocks above the limit", "block size 512 of .* is above this server's limit of 256")
def _(folder: Path) -> None:
    write(folder, save({OFT: torch.zeros(1, 512 * 511 // 2)}), peft_type="OFT")


@case("blocks that do not fill", "blocks of 24 do not fill the 64 inputs of .*q_proj")
def _(folder: Path) -> None:
    write(folder, save({OFT: torch.zeros(2, 276)}), peft_type="OFT")


@case("no number of a triangle", "says OFT, and its weights are not oft_R.weight of one block size")
def _(folder: Path) -> None:
    write(folder, save({OFT: torch.zeros(4, 121)}), peft_type="OFT")


@case("a sum of a billion powers", "num_cayley_neumann_terms 1000000000; 3 to 20 are read")
def _(folder: Path) -> None:
    terms = {"use_cayley_neumann": True, "num_cayley_neumann_terms": 10**9}
    write(folder, save({OFT: torch.zeros(4, 120)}), peft_type="OFT", **terms)


@case("a sum that is far from a rotation", r"the update of .*q_proj may reach 1.31e\+09 .*above")
def _(folder: Path) -> None:
    weights = save({OFT: torch.full((4, 120), 20.0)})
    write(folder, weights, peft_type="OFT", use_cayley_neumann=True)


# Ranks and shapes
weights_case("rank 257", lambda: save(tensors(rank=257)), "rank 257 of .* above this server's li")


@case("rank of a million, sparse", "rank 1000000 of .* is above this server's limit of 256")
def _(folder: Path) -> None:
    write(folder)
    size = 1_000_000 * 64 * 4
    header = {A: entry([1_000_000, 64], 0, size), B: entry([64, 1_000_000], size, 2 * size)}
    start = raw(header, b"")
    sparse(folder / WEIGHTS, len(start) + 2 * size)
    with (folder / WEIGHTS).open("r+b") as file:
        file.write(start)


weights_case(
    "rank 0",
    raw({A: entry([0, 64], 0, 0), B: entry([64, 0], 0, 0)}, b""),
    r"has shape \(0, 64\), so it is empty",
)
weights_case("one dimension", changed(lambda t: t.update({A: torch.zeros(256)})), "1 dimensions, e")
weights_case("A without B", changed(lambda t: t.pop(B)), "do not belong together")
weights_case(
    "ranks differ", changed(lambda t: t.update({A: torch.zeros(5, 64)})), "do not belong together"
)
weights_case(
    "narrow for this base",
    changed(lambda t: t.update({A: torch.zeros(4, 32)})),
    r"lora_A of .* has shape \(4, 32\), this base needs \(4, 64\); the adapter was made for ano",
)
weights_case(
    "long for this base",
    changed(lambda t: t.update({B: torch.zeros(65, 4)})),
    r"lora_B of .* has shape \(65, 4\), this base needs \(64, 4\)",
)
weights_case(
    "modules of another base",
    lambda: save({name.replace("layers.1", "layers.7"): t for name, t in tensors().items()}),
    "bad was made for another base: 2 of the 4 modules .* not in this one, such as model.layers.7",
)
weights_case(
    "a trained embedding",
    changed(lambda t: t.update({"base_model.model.embed.weight": torch.zeros(2, 2)})),
    "holds base_model.model.embed.weight; expected lora_A and lora_B only",
)
weights_case(
    "20,000 tensors",
    lambda: raw({f"t{n}": entry([1], 4 * n, 4 * n + 4) for n in range(20_000)}, bytes(80_000)),
    "holds 20000 tensors, more than this base's 8 modules can have",
)
weights_case(
    "control characters in a name",
    raw({"\x1b[2J\r\n\u202e": entry([4, 64], 0, 1024)}, bytes(1024)),
    r"holds \\x1b\[2J\\r\\n\\u202e; expected",
)
weights_case(
    "half a character in a name",
    raw({"\ud800": entry([4, 64], 0, 1024)}, bytes(1024)),
    r"holds \\ud800; expected",
)
weights_case("a name of a million letters", lambda: raw({"x" * 10**6: PAIR[A]}, bytes(1024)), "xx…")
# What stands in a file's place
for _file in (CONFIG, WEIGHTS, RECORD):
    instead(
        f"{_file} a link out of the library",
        _file,
        lambda path: path.symlink_to(path.parents[2] / "outside" / path.name),
        f"bad/{_file} is a link, not a regular file",
    )
    instead(
        f"{_file} a link to another adapter's",
        _file,
        lambda path: path.symlink_to(Path("..") / "good" / path.name),
        f"bad/{_file} is a link, not a regular file",
    )
    instead(f"{_file} a pipe", _file, os.mkfifo, f"bad/{_file} is a pipe, not a regular file")
    instead(f"{_file} a folder", _file, Path.mkdir, f"bad/{_file} is a folder, not a regular")
    instead(f"{_file} a socket", _file, listen, f"bad/{_file} is a socket, not a regular")
    instead(f"{_file} a link to itself", _file, lambda p: p.symlink_to(p), "is a link, not a reg")
for _file in (CONFIG, RECORD):
    instead(f"{_file} huge", _file, lambda p: sparse(p, 2**40), "1099511627776 bytes, allowed are")
instead("weights huge", WEIGHTS, lambda p: sparse(p, 2**40), "bytes, allowed are 1073741824; not")
instead("weights missing", WEIGHTS, lambda path: None, "bad has no adapter_model.safetensors; save")


@case("the folder a link out of the library", "bad is a link, not a folder")
def _(folder: Path) -> None:
    folder.symlink_to(folder.parents[1] / "outside")


@case("the folder a link by '..'", "bad is a link, not a folder")
def _(folder: Path) -> None:
    folder.symlink_to(Path("..") / "outside")


@case("the folder a link to another adapter", "bad is a link, not a folder")
def _(folder: Path) -> None:
    folder.symlink_to("good")


@case("the folder a link to nothing", "bad is a link, not a folder")
def _(folder: Path) -> None:
    folder.symlink_to("nothing")


@case("the folder a link to itself", "bad is a link, not a folder")
def _(folder: Path) -> None:
    folder.symlink_to(folder.name)


# Configuration
text_case("settings deep", CONFIG, lambda: b"[" * 500_000, "adapter_config.json is no usable JSON")
text_case("settings empty", CONFIG, b"", "adapter_config.json is no usable JSON")
text_case("settings in UTF-16", CONFIG, json.dumps(SETTINGS).encode("utf-16"), "no usable JSON")
text_case("settings a list", CONFIG, b"[]", "adapter_config.json holds no settings")
text_case("settings null", CONFIG, b"null", "adapter_config.json holds no settings")
text_case("settings twice", CONFIG, b'{"r": 4, "r": 8}', "the key 'r' stands in it twice")
text_case("a number of many digits", CONFIG, b'{"r": ' + b"9" * 9999 + b"}", "no usable JSON")
settings_case("alpha NaN", {"lora_alpha": float("nan")}, "NaN is no number")
settings_case("alpha infinite", {"lora_alpha": float("inf")}, "Infinity is no number")
text_case("alpha 1e999", CONFIG, json.dumps(SETTINGS | {"lora_alpha": "@"}).replace('"@"', "1e999")
          .encode(), "lora_alpha inf is unusable; give a number")  # fmt: skip
settings_case("alpha negative", {"lora_alpha": -8}, "-8.0 is unusable; give a number above 0")
settings_case("alpha zero", {"lora_alpha": 0}, "0.0 is unusable; give a number above 0")
settings_case("alpha a text", {"lora_alpha": "8"}, "lora_alpha '8' is unusable; give a number")
settings_case("alpha true", {"lora_alpha": True}, "lora_alpha True is unusable; give a number")
settings_case("alpha beyond floats", {"lora_alpha": 10**400}, "lora_alpha 1000.* is unusable")
settings_case("alpha null", {"lora_alpha": None}, "lora_alpha None is unusable")
for _rank in ("4", 0, -4, 4.0, True, None, [4], {"r": 4}):
    settings_case(f"r {_rank!r}", {"r": _rank}, "r .* is unusable; give a whole number from 1")
settings_case("rslora a text", {"use_rslora": "no"}, "use_rslora 'no' is unusable; give true or f")
settings_case("dora a number", {"use_dora": 1}, "use_dora 1 is unusable; give true or false")
settings_case("dropout a list", {"lora_dropout": [1]}, r"lora_dropout \[1\] is unusable")
settings_case("pattern a list", {"alpha_pattern": [["q", 1]]}, "alpha_pattern .* is unusable")
settings_case("pattern of texts", {"alpha_pattern": {"q_proj": "1"}}, "alpha_pattern '1' is unus")
settings_case("pattern negative", {"alpha_pattern": {"q_proj": -1}}, "q_proj -1.0 is unusable")
settings_case("pattern without end", {"alpha_pattern": {"(.+)+y": 1}}, "takes names, no expression")
settings_case("pattern broken", {"alpha_pattern": {"(": 1}}, "takes names, no expressions")
settings_case("pattern long", {"alpha_pattern": {"q" * 999: 1}}, "takes names, no expressions")
settings_case("many patterns", {"alpha_pattern": {f"q{n}": 1 for n in range(999)}}, "999 entries")
settings_case("trained biases", {"bias": "all"}, "uses bias=all, which cannot stand beside")
settings_case("saved modules", {"modules_to_save": ["lm_head"]}, "uses modules_to_save, which")
settings_case("a changed base", {"init_lora_weights": "lora_ga"}, "lora_ga, which changes the base")
settings_case(
    "another method", {"peft_type": "IA3"}, "bad is a IA3 adapter; Laura reads LORA and OFT"
)
settings_case("no method", {"peft_type": None}, "bad is a None adapter; Laura reads LORA and OFT")
settings_case("the base a number", {"base_model_name_or_path": 7}, "base_model_name_or_path is no")
settings_case("DoRA without lengths", {"use_dora": True}, "use_dora: True, but no lora_magnitude")
# The record
text_case("record empty", RECORD, b"", "laura.json is no record of format 2.*or delete it")
text_case("record a list", RECORD, b"[1]", "laura.json is no record of format 2")
text_case("record deep", RECORD, lambda: b"[" * 500_000, "laura.json is no record of format 2")
text_case("record not UTF-8", RECORD, b'{"\xff": 1}', "laura.json is no record of format 2")
record_case("record NaN", {"learning_rate": float("nan")}, "no record of format 2.*finite number")
record_case("record with more", {"surprise": 1}, "laura.json is no record of format 2.*surprise")
record_case("record of other weights", {"weights": {WEIGHTS: "0" * 64, CONFIG: "0" * 64}},
            "laura.json belongs to other files: it says another SHA-256")  # fmt: skip
record_case("record of no weights", {"weights": {}}, "belongs to other files: it says nothing of")
record_case("record of another base", {"base": {**VALUE["base"], "fingerprint": "e" * 64}},
            "bad was made for another base: its laura.json names 'm' with hash eeeeeeeeeeee, this "
            "one has ffffffffffff")  # fmt: skip
record_case("record against itself", {"forgetting": {**VALUE["forgetting"], "value": 9.0}},
            r"contradicts itself: forgetting of \+9 lies outside its own interval")  # fmt: skip
text_case("record without its weights", WEIGHTS, lambda: save(tensors(seed=1)),
          r"belongs to other files: it says another SHA-256 for it \(adapter_model")  # fmt: skip
text_case("record without its settings", CONFIG, json.dumps(SETTINGS, indent=1).encode(),
          r"belongs to other files: it says another SHA-256 for it \(adapter_config")  # fmt: skip
