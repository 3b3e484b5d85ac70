"""Progress that people see: bars on a terminal, plain lines everywhere else.

Both show percentage, speed, time elapsed and time left. Bars may be nested: one opened
while another is open stands below it, and those of other threads beside one another.

rich's own estimate of the time left is not used: it is unknown until the second advance,
forgets advances that are more than half a minute apart, and takes for speed what a resumed
run finds done.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console as Terminal
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from laura.results.progress import Bar, Progress, duration_text

LINE_SECONDS = 15.0
WINDOW_SECONDS = 120.0
WINDOW_SAMPLES = 8
# A resumed bar jumps to where it stood as soon as it opens; that jump is not speed.
OPENING_SECONDS = 1.0
# Columns of a bar that go where there is no room: speed, time elapsed, amount, bar, remark.
SPARE = (4, 5, 3, 1, 7)

Clock = Callable[[], float]


class BarPace:
    """How far a piece of work is, how fast it goes, and how long it still takes.

    Speed is taken over the last two minutes, or the last eight advances where
    those are rarer, so that a slow start or a resumed run does not mislead.
    """

    def __init__(self, total: float, unit: str = "", clock: Clock = time.monotonic) -> None:
        self.total, self.unit = total, unit
        self.done = 0.0
        self._clock = clock
        self._opened = clock()
        self._samples: deque[tuple[float, float]] = deque([(self._opened, 0.0)])

    def advance(self, amount: float) -> None:
        """Count `amount` more units as done."""
        now = self._clock()
        self.done += amount
        if now - self._opened < OPENING_SECONDS:
            self._samples.clear()
        self._samples.append((now, self.done))
        while len(self._samples) > WINDOW_SAMPLES and self._samples[1][0] < now - WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def share(self) -> float:
        """Share done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 1.0

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the bar was opened."""
        return self._clock() - self._opened

    @property
    def rate(self) -> float | None:
        """Units a second; None before it is known."""
        (first_time, first_done), (last_time, last_done) = self._samples[0], self._samples[-1]
        if last_time <= first_time or last_done <= first_done:
            return None
        return (last_done - first_done) / (last_time - first_time)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the total is reached at the present speed; None where it is not known.

        That is before the first advances, and again when the time that they promised is over,
        or the total is reached: whoever keeps a bar open has more to do.
        """
        if self.rate is None or math.isinf(self.total):
            return None
        since_last = self._clock() - self._samples[-1][0]
        left = (self.total - self.done) / self.rate - since_last
        return left if left > 0 else None

    def words(self) -> tuple[str, str, str, str, str]:
        """Percentage, amount, speed, time elapsed and time left, as people read them.

        100 % is the end's alone, and 0:00 is never left.
        """
        left = self.seconds_left
        total = "" if math.isinf(self.total) else f"/{self.total:,.0f}"
        return (
            f"{math.floor(100 * self.share + 1e-9)}%",
            f"{self.done:,.0f}{total} {self.unit}".rstrip(),
            speed_text(self.rate, self.unit),
            f"{duration_text(self.elapsed_seconds)} elapsed",
            f"{duration_text(left and math.ceil(left))} left",
        )


def speed_text(rate: float | None, unit: str) -> str:
    """Speed as people read it: `301 tokens/s`, or `3.2 s/item` where it is slow."""
    if rate is None or not unit:
        return ""
    if rate < 1:
        return f"{1 / rate:,.1f} s/{unit.removesuffix('s')}"
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


class _ShownBar:
    """A bar that tells its owner of every change."""

    def __init__(self, title: str, pace: BarPace, changed: Callable[[_ShownBar], object]) -> None:
        self.title, self.pace, self.remark = title, pace, ""
        self.thread = threading.get_ident()
        self._changed = changed

    def advance(self, amount: float = 1.0) -> None:
        self.pace.advance(amount)
        self._changed(self)

    def note(self, text: str) -> None:
        self.remark = text
        self._changed(self)

    def described(self) -> str:
        percentage, *words = self.pace.words()
        parts = [f"{self.title} {percentage}", *words, self.remark]
        return ", ".join(part for part in parts if part)


class PlainLines:
    """A `Progress` for logs: about every 15 seconds a line with percentage and time left."""

    def __init__(self, write: Callable[[str], object], clock: Clock = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._open: list[_ShownBar] = []
        self._reported = clock()

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Bar]:
        """Open a bar; its last line says how long it took, if that was worth telling."""
        bar = _ShownBar(title, BarPace(total, unit, self._clock), self._report)
        self._open.append(bar)
        try:
            yield bar
        finally:
            self._open.remove(bar)
        if bar.pace.elapsed_seconds >= LINE_SECONDS:
            remark = f", {bar.remark}" if bar.remark else ""
            self.say(f"{title}: finished in {duration_text(bar.pace.elapsed_seconds)}{remark}")

    def say(self, text: str) -> None:
        """Write the line."""
        self._write(text + "\n")

    def _report(self, changed: _ShownBar) -> None:
        """Write where all open bars stand, unless that was done a moment ago."""
        if self._clock() - self._reported >= LINE_SECONDS:
            self._reported = self._clock()
            threads: dict[int, list[str]] = {}
            for bar in list(self._open):
                threads.setdefault(bar.thread, []).append(bar.described())
            self.say(" | ".join(" > ".join(bars) for bars in threads.values()))


class _PaceColumn(ProgressColumn):
    """One of the words of a bar's pace, which also change while nothing advances."""

    max_refresh = 0.5

    def __init__(self, place: int, style: str) -> None:
        self._place, self._style = place, style
        super().__init__()

    def render(self, task: Task) -> Text:
        words = task.fields["bar"].pace.words()[self._place]
        return Text(words, style=self._style, justify="right", no_wrap=True)


class _FittingBars(RichProgress):
    """Bars that leave out columns where a terminal is too narrow for them, the dullest first."""

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """The bars of these tasks, with all that there is room for."""
        shown, whole = list(tasks), self.columns
        if not shown:  # also when rich asks for the first time, and has no console yet
            return super().make_tasks_table(shown)
        endless = self.console.options.update(max_width=10_000)
        for count in range(len(SPARE) + 1):
            left_out = SPARE[:count]
            self.columns = tuple(c for place, c in enumerate(whole) if place not in left_out)
            table = super().make_tasks_table(shown)
            if self.console.measure(table, options=endless).maximum <= self.console.width:
                break
        self.columns = whole
        return table


class RichBars:
    """A `Progress` for a terminal: bars that stand below one another."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        # Bars stand below one another within a thread, and beside those of other threads.
        self._depths: Counter[int] = Counter()
        self._opener = threading.get_ident()
        self._lock = threading.Lock()
        self._display = _FittingBars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            *(_PaceColumn(*place) for place in enumerate(("bold", "dim", "dim", "dim", "cyan"))),
            TextColumn("{task.fields[bar].remark}", markup=False, style="dim"),
            console=terminal,
            transient=True,
            refresh_per_second=4,
        )

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Bar]:
        """Open a bar; it disappears when the work is done."""
        here = threading.get_ident()
        with self._lock:
            if not self._depths.total():
                self._display.start()
            above = self._depths[here] + (self._depths[self._opener] if here != self._opener else 0)
            self._depths[here] += 1

        def changed(bar: _ShownBar) -> None:
            self._display.update(task, completed=bar.pace.done)

        bar = _ShownBar("  " * above + title, BarPace(total, unit), changed)
        task = self._display.add_task(bar.title, total=max(total, 1e-9), bar=bar)
        try:
            yield bar
        finally:
            with self._lock:
                self._depths[here] -= 1
                self._display.remove_task(task)
                if not self._depths.total():
                    self._display.stop()

    def say(self, text: str) -> None:
        """Print the line above the bars."""
        self._terminal.print(text, markup=False, highlight=False)


@contextmanager
def open_progress() -> Iterator[Progress]:
    """The `Progress` that suits standard error: bars on a terminal, lines elsewhere."""
    terminal = Terminal(stderr=True)
    if terminal.is_terminal and not terminal.is_dumb_terminal:
        yield RichBars(terminal)
    else:
        yield PlainLines(_write_line)


def _write_line(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
