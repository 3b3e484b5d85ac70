"""A function in several processes: its results in their order, and no process left behind."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count, repeat
from pathlib import Path
from typing import Any

import pytest

from laura.data.processes import READ_AHEAD, map_in_order
from laura.data.sources import load_rows
from laura.results.errors import DataError, StoreError

ROOT = Path(__file__).resolve().parents[2]
# Each process leads a session, so this tells which one answers.
WHO = os.getpgid


@pytest.fixture(autouse=True)
def _this_laura(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def gone(numbers: list[int], seconds: float = 10.0) -> bool:
    """Whether processes end within so long; one that nobody has waited for counts as ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        command = ["ps", "-o", "stat=", "-p", ",".join(map(str, numbers))]
        states = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        if all(state.startswith("Z") for state in states):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_those_of_the_function_in_order(workers: int) -> None:
    found = list(map_in_order(partial(pow, 3), iter(range(40)), workers))
    assert found == [3**number for number in range(40)]
    assert list(map_in_order(abs, iter(()), workers)) == []


def test_what_is_large_passes_both_ways() -> None:
    """More than a pipe holds, in both directions at once, must not have both sides wait."""
    texts = [bytes([number]) * (1 << 20) for number in range(12)]
    assert list(map_in_order(bytes.swapcase, iter(texts), 2)) == [t.swapcase() for t in texts]


def test_processes_take_turns_and_little_is_read_ahead() -> None:
    read = count()
    with closing(map_in_order(WHO, map(operator.mul, read, repeat(0)), 2)) as results:
        found = [next(results)]
        assert next(read) == 2 * READ_AHEAD
        found += [next(results) for _ in range(5)]
        assert found[::2] == [found[0]] * 3 and found[1::2] == [found[1]] * 3
        assert len({*found, os.getpgid(0)}) == 3
    assert gone(found, 0.1)


def test_a_fault_comes_when_its_turn_has_come() -> None:
    def broken() -> Iterator[Any]:
        yield from (1, 2, 3)
        raise DataError("row 3 is no row")

    results = map_in_order(abs, broken(), 2)
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DataError, match="row 3 is no row"):
        next(results)
    results = map_in_order(partial(load_rows, "gsm8k"), iter(["half"]), 2)
    with pytest.raises(DataError, match="gsm8k has no split 'half'"):
        next(results)
    results = map_in_order(int, iter(["5", "five"]), 1)
    assert next(results) == 5
    with pytest.raises(RuntimeError, match=r"in a worker process:\n(.|\n)*invalid literal"):
        next(results)


@pytest.mark.parametrize(
    ("end", "how", "words"),
    [(os._exit, 3, "exit code 3"), (signal.raise_signal, signal.SIGKILL, "signal SIGKILL")],
)
def test_a_process_that_ends_by_itself_is_told(
    end: Callable[[int], object], how: int, words: str
) -> None:
    results = map_in_order(end, iter([how] * 9), 2)
    with pytest.raises(StoreError, match=f"a worker process ended by {words}; what was done"):
        next(results)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_who_asked(sent: int) -> None:
    """Ended while one process works and the other waits for work."""
    code = (
        "import os, time\n"
        "from laura.data.processes import map_in_order\n"
        "results = map_in_order(os.getpgid, iter([0, 0]), 2)\n"
        "print(next(results), next(results), flush=True)\n"
        "busy = map_in_order(time.sleep, iter([20, 0]), 2)\n"
        "print('begun', flush=True)\n"
        "next(busy)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None and asking.stderr is not None
        known = [int(number) for number in asking.stdout.readline().split()]
        asking.stdout.readline()
        children: list[str] = []
        while len(children) < 4:
            found = subprocess.run(
                ["pgrep", "-P", str(asking.pid)], capture_output=True, text=True, check=False
            )
            children = found.stdout.split()
        time.sleep(0.5)  # until one of them sleeps
        begun = time.monotonic()
        asking.send_signal(sent)
        told = asking.stderr.read()
        assert asking.wait() != 0 and time.monotonic() - begun < 5
    assert gone([*known, *map(int, children)])
    assert told == "" if sent == signal.SIGKILL else told.endswith("KeyboardInterrupt\n")
