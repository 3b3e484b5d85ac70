"""Where the tensors of a safetensors file lie, read off its header without trusting it.

The file is 8 bytes (length N of the header, little-endian), N bytes of JSON (name -> dtype,
shape, data_offsets; `__metadata__` of strings), and the data. Beyond what the format says
(https://github.com/huggingface/safetensors#format), the header is bounded, no name may stand
in it twice, and a tensor starts at a multiple of its element's size. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from laura.results.errors import AdapterError
from laura.serve.safe_files import ReadOnce, strict_json

# A 70B model's adapter on every map, with metadata, has 0.2 million bytes of header.
MOST_HEADER_BYTES = 4 * 1024**2
METADATA = "__metadata__"
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# The format's other types are told from nonsense by their names alone.
ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Place:
    """A tensor: its type as the format calls it, its shape, its bytes in the data [begin, end)."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_places(file: ReadOnce) -> dict[str, Place]:
    """Read the header; the next bytes of the file are then the data.

    Returns:
        Every tensor by name, in the order of its bytes. Types that are not among
        `ELEMENT_BYTES` have passed no check of their size.

    Raises:
        AdapterError: it is no safetensors file, or its header contradicts itself or the file.
    """
    if file.size < 8:
        _damaged(file.label, f"it has {file.size} bytes")
    start = bytes(file.take(8))
    length = int.from_bytes(start, "little")
    if length > file.size - 8 or length > MOST_HEADER_BYTES:
        if start.startswith(PICKLES):
            raise AdapterError(
                f"{file.label} is a pickle, which can run code when opened, and is not read; "
                "save it with safetensors"
            )
        allowed = min(file.size - 8, MOST_HEADER_BYTES)
        _damaged(file.label, f"a header of {length} bytes, at most {allowed} are possible")
    header = strict_json(file.take(length), file.label)
    if not isinstance(header, dict):
        _damaged(file.label, "the header is no object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _damaged(file.label, f"{METADATA} holds something else than texts")
    places = {name: _place(name, entry, file.label) for name, entry in header.items()}
    places = dict(sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_cover(places, file.size - 8 - length, file.label)
    return places


def _place(name: str, entry: Any, label: Path) -> Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _damaged(label, f"the entry of {name} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets):
        _damaged(label, f"the entry of {name} has values of a wrong type")
    if len(offsets) != 2:
        _damaged(label, f"{name} has {len(offsets)} offsets")
    place = Place(dtype, tuple(shape), *offsets)
    size = ELEMENT_BYTES.get(dtype)
    if size is not None and place.elements * size != place.end - place.begin:
        _damaged(label, f"{name} has {place.end - place.begin} bytes for shape {place.shape}")
    if size is not None and place.begin % size:
        _damaged(label, f"{name} starts at byte {place.begin}, no multiple of {size}")
    return place


def _counts(values: Any) -> bool:
    # More dimensions than any tensor has would only make their product slow to compute.
    return (
        isinstance(values, list)
        and len(values) <= 8
        and all(type(value) is int and 0 <= value < 2**63 for value in values)
    )


def _check_cover(places: dict[str, Place], data_bytes: int, label: Path) -> None:
    """The tensors lie one behind the other, without gap or overlap, and fill the data."""
    at = 0
    for name, place in places.items():
        if place.begin != at or place.end < at:
            word = "overlaps what is before it" if place.begin < at else "leaves a gap before it"
            _damaged(label, f"{name} {word}")
        at = place.end
    if at != data_bytes:
        _damaged(label, f"it has {data_bytes} bytes of data, its header says {at}")


def _damaged(label: Path, why: str) -> NoReturn:
    raise AdapterError(f"{label} is damaged ({why}); copy it again")
