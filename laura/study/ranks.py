"""The processes of one run over several devices, one a device.

Whoever carries out the run is the first of them and starts the others for it:
`python -m laura.study.ranks`, whose standard input is the setup. Each loads the base, makes it
ready as the first does, and follows it (`training/sharded.py`). When its input ends, the first
is gone or has done, and so is this one. They are no children of a fork, nor of a script that
would have to guard its main part.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from laura.models.device import spread_devices, threads
from laura.recipe.sections import Arm, TrainSection
from laura.results.errors import StoreError
from laura.results.processes import how_ended, kept_output
from laura.study.workbench import Workbench
from laura.training.remedies import objective_of

# How long a process whose group has broken waits to learn which other one ended.
END_SECONDS = 10.0
READY = b"ready\n"


@contextmanager
def ranks(
    bench: Workbench,
    arm: Arm,
    seed: int,
    train: TrainSection,
    learning_rate: float,
    start: Path | None = None,
) -> Iterator[None]:
    """Within the block the processes of a run follow this one; on one device there are none.

    Args:
        bench: The base.
        arm: What is trained.
        seed: Of the run.
        train: The recipe's `train`.
        learning_rate: Peak rate.
        start: Checkpoint that the run goes on from; None for the base.

    Raises:
        StoreError: one of them has ended before its time.
    """
    if train.devices == 1:
        yield
        return
    from laura.training.sharded import joined

    devices = spread_devices(bench.device_name, train.devices)
    before = torch.get_num_threads()
    each = max(1, threads() // train.devices)
    with tempfile.TemporaryDirectory(prefix="laura-") as folder, ExitStack() as held:
        store = Path(folder) / "store"
        setup = {"base": bench.section, "arm": arm, "seed": seed, "train": train,
                 "learning_rate": learning_rate, "devices": devices, "store": store,
                 "start": start}  # fmt: skip
        others = [
            held.enter_context(_Rank({**setup, "rank": rank}, each))
            for rank in range(1, train.devices)
        ]
        for other in others:
            other.wait_until_ready()
        torch.set_num_threads(each)
        try:
            with joined(store, 0, devices), _told(others):
                yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def _told(others: Sequence[_Rank]) -> Iterator[None]:
    """Turn torch's error about a peer that does not answer into how that one ended."""
    try:
        yield
    except RuntimeError as error:
        limit = time.monotonic() + END_SECONDS
        while not any(words := [other.end_words() for other in others]):
            if time.monotonic() > limit:
                raise  # it is an error of this process
            time.sleep(0.1)
        raise StoreError(next(filter(None, words))) from error


class _Rank:
    """One further process; to be used in `with`."""

    def __init__(self, setup: dict[str, Any], threads: int) -> None:
        rank, devices = setup["rank"], setup["devices"]
        self._name = f"{rank + 1} of {len(devices)} ({devices[rank]})"
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "laura.study.ranks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C is the first one's matter
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        with suppress(BrokenPipeError):  # it has ended; who waits for it tells why
            pickle.dump(setup, self._input)
            self._input.flush()

    def __enter__(self) -> _Rank:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._input.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def wait_until_ready(self) -> None:
        """Wait until it has loaded the base.

        Raises:
            StoreError: it has ended instead.
        """
        assert self._process.stdout is not None
        if self._process.stdout.readline() != READY:
            self._process.wait()
            raise StoreError(self.end_words())

    def end_words(self) -> str:
        """How it ended; nothing while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        how = how_ended(code, self._errors)
        return (
            f"process {self._name} of the run ended by {how}; the run is kept as it was last "
            "saved, and the same command continues, also with another train.devices"
        )


def main() -> None:
    """Be one process of a run."""
    answer = kept_output()
    setup = pickle.load(sys.stdin.buffer)
    listener = threading.Thread(target=_end_with_the_first, daemon=True)
    listener.start()
    from laura.training.sharded import follow, joined

    arm, train, devices = setup["arm"], setup["train"], setup["devices"]
    bench = Workbench(setup["base"], devices[setup["rank"]])
    with bench.adapted(arm, setup["seed"], train.devices, start=setup["start"]) as adapted:
        adapted.begin()
        answer.write(READY)
        answer.flush()
        with joined(setup["store"], setup["rank"], devices):
            rate, objective = setup["learning_rate"], objective_of(arm)
            follow(adapted.model, train, rate, adapted.rule, objective)
    listener.join()


def _end_with_the_first() -> None:
    # Read without a buffer, whose lock would be held while the process ends by an error.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
