"""Rows that come and go, and beginnings that are kept, against plain lists."""

from __future__ import annotations

import random

import torch

from laura.engine.kv_cache import CacheRow, Geometry, KVCache, PrefixCache

GEOMETRY = Geometry(2, 1, 4, torch.float32)
CPU = torch.device("cpu")
ROW = GEOMETRY.row_bytes(128)


def write(row: CacheRow, marks: list[int]) -> None:
    """One mark a token, in keys and values."""
    for mark in marks:
        row.block.pairs[:, row.index, :, 0, row.tokens] = mark
        row.block.pairs[:, row.index, :, 1, row.tokens] = -mark
        row.tokens += 1


def read(row: CacheRow) -> list[int]:
    keys = row.block.pairs[0, row.index, 0, 0, :, 0]
    assert keys.equal(-row.block.pairs[1, row.index, 0, 1, :, 3])
    assert not keys[row.tokens :].any(), "behind its tokens a row is zero"
    return [int(mark) for mark in keys[: row.tokens]]


def test_rows_keep_what_is_theirs() -> None:
    source = random.Random(0)
    lanes = KVCache(GEOMETRY, 1000, 40 * ROW, 30, CPU)
    marks: dict[CacheRow, list[int]] = {}
    running: set[CacheRow] = set()
    for turn in range(600):
        row = lanes.take(source.choice([5, 128, 129, 400, 1000]))
        if row is not None:
            marks[row] = []
        for row in source.sample(list(marks), min(3, len(marks))):
            if row.tokens < 100:
                fresh = [turn * 10 + i + 1 for i in range(source.randrange(9))]
                write(row, fresh)
                marks[row] += fresh
            if row not in running and source.random() < 0.5:
                row.block.start(row)
                running.add(row)
        if len(marks) > 20 or source.random() < 0.3:
            row = source.choice(list(marks))
            row.block.free(row)
            running.discard(row)
            del marks[row]
        assert lanes.bytes <= 40 * ROW and lanes.rows == len(marks)
        for block in lanes.blocks:
            assert [row.index for row in block.rows] == list(range(len(block.rows)))
            assert set(block.rows[: block.running]) == running & set(block.rows)
        for row, own in marks.items():
            assert read(row) == own
    for row in list(marks):
        row.block.free(row)
    assert lanes.rows == 0 and not any(block.pairs.any() for block in lanes.blocks)
    assert not lanes.can_ever_hold(1001) and lanes.can_ever_hold(1000)


def test_beginnings_are_found_and_bounded() -> None:
    source = random.Random(1)
    lanes = KVCache(GEOMETRY, 1000, 4 * GEOMETRY.row_bytes(1000), 4, CPU)
    kept = PrefixCache(20 * GEOMETRY.row_bytes(64))
    texts: list[list[int]] = []
    hits = 0
    for _ in range(300):
        if texts and source.random() < 0.7:
            old = source.choice(texts[-8:])
            text = old[: source.randrange(1, len(old) + 1)]
            text = text + [source.randrange(1, 50) for _ in range(source.randrange(1, 90))]
        else:
            text = [source.randrange(1, 50) for _ in range(source.randrange(1, 300))]
        text = text[:900]
        owner = source.choice(["one", "two"])
        row = lanes.take(1000)
        assert row is not None
        found = kept.fill(owner, text, row)
        assert read(row) == text[:found]
        hits += found
        write(row, text[found:])
        kept.keep(owner, text, row)
        again = lanes.take(1000)
        assert again is not None
        assert kept.fill(owner, text, again) == len(text) and read(again) == text
        assert kept.bytes <= kept.budget_bytes
        row.block.free(row)
        again.block.free(again)
        texts.append(text)
    assert hits > 3000
    nothing = lanes.take(1000)
    assert nothing is not None and kept.fill("three", texts[-1], nothing) == 0
