"""The log: nobody waits for whoever reads it, and what is lost is counted."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laura.serve import log_stream
from laura.serve.log_stream import LogStream
from tests.serve.houses import until
from tests.serve.real_server import ENVIRONMENT

LINE = b'{"number": %6d}' + b" " * 1000 + b"\n"


def test_lines_come_in_order_and_the_lost_ones_are_counted() -> None:
    reader, writer = os.pipe()
    stream = LogStream(writer)
    began = time.monotonic()
    count = 3 * log_stream.MOST_BYTES // len(LINE % 0)
    for number in range(count):
        assert stream.write(LINE % number) == len(LINE % 0)
    stream.drain(0.1)
    assert time.monotonic() - began < 5
    # One buffer waits, another may be in the thread's hand.
    assert count // 4 < stream.dropped < count
    told: list[dict[str, int]] = []
    with open(reader, "rb") as lines:
        for line in lines:
            told.append(json.loads(line))
            numbers = [one["number"] for one in told if "number" in one]
            lost = sum(one.get("dropped", 0) for one in told)
            if len(numbers) + lost == count:
                break
        stream.write(LINE % count)
        stream.drain(10)
        assert json.loads(lines.readline()) == {"number": count}
    assert numbers == sorted(set(numbers)) and lost == stream.dropped


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.booleans()), max_size=60))
def test_whatever_is_read_when_lines_are_whole_in_order_and_counted(
    steps: list[tuple[int, bool]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_stream, "MOST_BYTES", 1000)
        reader, writer = os.pipe()
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(reader, False)
        stream, came, sent = LogStream(writer), b"", 0

        def read() -> bytes:
            try:
                return os.read(reader, 1 << 16)
            except BlockingIOError:
                return b""

        for size, reads in steps:
            for _ in range(size):
                stream.write(b'{"number": %d, "fill": "%s"}\n' % (sent, b"x" * 40))
                sent += 1
            if reads:
                came += read()

        def all_told() -> bool:
            nonlocal came
            came += read()
            rows = [json.loads(line) for line in came.splitlines() if line.endswith(b"}")]
            numbers = [row["number"] for row in rows if "number" in row]
            assert numbers == sorted(set(numbers))
            return len(numbers) + sum(row.get("dropped", 0) for row in rows) == sent

        stream.write(b"")
        until(all_told)
        for end in (reader, writer):
            os.close(end)


def test_a_log_that_cannot_be_written_is_counted_and_goes_on() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = LogStream(writer)
    for _ in range(3):
        stream.write(b"a\n")
        stream.drain()
    until(lambda: stream.dropped >= 3)


SCRIPT = """
import logging, sys, threading, warnings
from laura.serve.log_stream import unblocked_log
early = logging.getLogger("early")
early.addHandler(logging.StreamHandler())
log = unblocked_log()
for _ in range(4000):
    log.write({"words": "x" * 400})
    logging.getLogger("any").error("y" * 400)
    early.error("e" * 400)
    warnings.warn("z" * 400)
print("done", log.dropped() > 1000, flush=True)
raise SystemExit(3)
"""


def test_nothing_that_python_writes_holds_the_process() -> None:
    """Neither lines nor logging nor warnings, nor the end, where standard error is stuck."""
    with subprocess.Popen(
        [sys.executable, "-W", "always", "-c", SCRIPT],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout and child.stdout.read() == b"done True\n"
        began = time.monotonic()
        assert child.wait(20) == 3
        assert time.monotonic() - began < 5


def test_what_was_written_last_is_there() -> None:
    script = SCRIPT.replace("4000", "3").replace("log.dropped() > 1000", "log.dropped() == 0")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "done True\n")
    assert [line[:1] for line in done.stderr.splitlines()] == ["{", "y", "e"] * 3
