"""A function applied by several processes, its results in order.

`python -m laura.data.processes`, started by `map_in_order` only, is the other end: the first
value of standard input is the function, every further one an argument, and each value of
standard output a result. When the input ends, the process that asked is gone, and so is this one.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import cycle, islice
from typing import Any, TypeVar

from laura.results.errors import EXIT_DONE, LauraError, StoreError
from laura.results.processes import how_ended, kept_output, orders

Argument = TypeVar("Argument")
Result = TypeVar("Result")

READ_AHEAD = 2  # arguments of a process: what it works at, and what waits for it


def map_in_order(
    function: Callable[[Argument], Result], arguments: Iterator[Argument], workers: int
) -> Iterator[Result]:
    """Results of a function for one argument after the other.

    Each process takes its turn, and `READ_AHEAD` arguments of each are under way, so memory is
    bounded. The processes end with this iterator: close it where it is left early.

    Args:
        function: Can be pickled; it and what it gives are the same in every process.
        arguments: Read as far as there is room for them.
        workers: How many processes.

    Raises:
        StoreError: a process has ended by itself, for want of memory as a rule.
        LauraError: what `function` or `arguments` raise, behind the results that come before it.
        RuntimeError: any other error of `function`, with its traceback.
    """
    fault: LauraError | None = None
    with ExitStack() as ends:
        crew = list[_Helper]()
        for _ in range(workers):
            crew.append(_Helper())
            ends.callback(crew[-1].end)
        # Twice pickled, so that it is taken in before it is opened: opening imports libraries.
        pickled = pickle.dumps(function)
        for helper in crew:
            helper.tell(pickled)
        turns, waiting = cycle(crew), deque[_Helper]()
        while True:
            try:
                for argument in islice(arguments, READ_AHEAD * workers - len(waiting)):
                    helper = next(turns)
                    helper.tell(argument)
                    waiting.append(helper)
            except LauraError as error:
                fault, arguments = error, iter(())
            if not waiting:
                break
            yield waiting.popleft().answer()
    if fault is not None:
        raise fault


class _Helper:
    """One process, and the conversation with it: a pickled value a message."""

    def __init__(self) -> None:
        quiet = [] if sys.warnoptions else ["-W", "ignore"]
        self._process = subprocess.Popen(
            [sys.executable, *quiet, "-m", "laura.data.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C reaches the command alone, which ends this one
            # There is a process for every core: threads of tokenizers would be in the way.
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )

    def tell(self, value: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which reading its answer tells
            pickle.dump(value, self._process.stdin)
            self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        try:
            found = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise StoreError(self._end_words()) from None
        if isinstance(found, Exception):
            raise found
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _end_words(self) -> str:
        how = how_ended(self._process.wait())
        return (
            f"a worker process ended by {how}; what was done is kept, and the same command "
            "continues. If memory is short, a lower OMP_NUM_THREADS has fewer of them"
        )


def main() -> int:
    """Answer until nobody asks any more."""
    answers = kept_output()
    function = pickle.loads(pickle.load(sys.stdin.buffer))
    asked = orders()
    with suppress(BrokenPipeError):
        while True:
            pickle.dump(_result(function, asked.get()), answers)
            answers.flush()
    return EXIT_DONE


def _result(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except (LauraError, MemoryError) as error:
        return error
    except Exception:
        return RuntimeError(f"in a worker process:\n{traceback.format_exc()}")


if __name__ == "__main__":
    sys.exit(main())
