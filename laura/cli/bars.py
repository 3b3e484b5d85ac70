"""Progress that people see: bars on a terminal, plain lines everywhere else.

Both show percentage, speed, time elapsed and time left. Bars may be nested:
one opened while another is open stands below it.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from laura.results.progress import Bar, Progress, duration_text

LINE_SECONDS = 15.0
WINDOW_SECONDS = 120.0
WINDOW_SAMPLES = 8
# A resumed bar jumps to where it stood as soon as it opens; that jump is not speed.
OPENING_SECONDS = 1.0

Clock = Callable[[], float]


class Pace:
    """How far a piece of work is, how fast it goes, and how long it still takes.

    Speed is taken over the last two minutes, or the last eight advances where
    those are rarer, so that a slow start or a resumed run does not mislead.
    """

    def __init__(self, total: float, clock: Clock = time.monotonic) -> None:
        self.total = total
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
        """Seconds until the total is reached at the present speed; None before it is known."""
        if self.share >= 1:
            return 0.0
        if self.rate is None or math.isinf(self.total):
            return None
        since_last = self._clock() - self._samples[-1][0]
        return max(0.0, (self.total - self.done) / self.rate - since_last)


def speed_text(rate: float | None, unit: str) -> str:
    """Speed as people read it: `301 tokens/s`, or `3.2 s/item` where it is slow."""
    if rate is None or not unit:
        return ""
    if rate < 1:
        return f"{1 / rate:,.1f} s/{unit.removesuffix('s')}"
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


def _amount_text(pace: Pace, unit: str) -> str:
    total = "" if math.isinf(pace.total) else f"/{pace.total:,.0f}"
    return f"{pace.done:,.0f}{total} {unit}".rstrip()


class _PlainBar:
    def __init__(self, owner: PlainLines, title: str, pace: Pace, unit: str) -> None:
        self.title, self.pace, self.unit, self.remark = title, pace, unit, ""
        self.thread = threading.get_ident()
        self._owner = owner

    def advance(self, amount: float = 1.0) -> None:
        self.pace.advance(amount)
        self._owner.maybe_report()

    def note(self, text: str) -> None:
        self.remark = text

    def describe(self) -> str:
        parts = [
            f"{self.title} {self.pace.share:.0%}",
            _amount_text(self.pace, self.unit),
            speed_text(self.pace.rate, self.unit),
            f"{duration_text(self.pace.elapsed_seconds)} elapsed",
            f"{duration_text(self.pace.seconds_left)} left",
            self.remark,
        ]
        return ", ".join(part for part in parts if part)


class PlainLines:
    """A `Progress` for logs: about every 15 seconds a line with percentage and time left."""

    def __init__(self, write: Callable[[str], object], clock: Clock = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._open: list[_PlainBar] = []
        self._reported = clock()

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Bar]:
        """Open a bar; its last line says how long it took, if that was worth telling."""
        bar = _PlainBar(self, title, Pace(total, self._clock), unit)
        self._open.append(bar)
        try:
            yield bar
        finally:
            self._open.remove(bar)
        if bar.pace.elapsed_seconds >= LINE_SECONDS:
            took = duration_text(bar.pace.elapsed_seconds)
            remark = f", {bar.remark}" if bar.remark else ""
            self._line(f"{title}: finished in {took}{remark}")

    def say(self, text: str) -> None:
        """Write the line."""
        self._line(text)

    def maybe_report(self) -> None:
        """Write where all open bars stand, unless that was done a moment ago."""
        if self._clock() - self._reported >= LINE_SECONDS:
            self._reported = self._clock()
            threads: dict[int, list[str]] = {}
            for bar in list(self._open):
                threads.setdefault(bar.thread, []).append(bar.describe())
            self._line(" | ".join(" > ".join(bars) for bars in threads.values()))

    def _line(self, text: str) -> None:
        self._write(text + "\n")


class _PaceColumn(ProgressColumn):
    max_refresh = 0.5

    def __init__(self, describe: Callable[[Pace, str], str], style: str) -> None:
        self._describe, self._style = describe, style
        super().__init__()

    def render(self, task: Task) -> Text:
        text = self._describe(task.fields["pace"], task.fields["unit"])
        return Text(text, style=self._style, justify="right", no_wrap=True)


class _RichBar:
    def __init__(self, display: RichProgress, task: TaskID, pace: Pace) -> None:
        self._display, self._task, self._pace = display, task, pace

    def advance(self, amount: float = 1.0) -> None:
        self._pace.advance(amount)
        self._display.update(self._task, completed=self._pace.done)

    def note(self, text: str) -> None:
        self._display.update(self._task, remark=text)


class RichBars:
    """A `Progress` for a terminal: bars that stand below one another."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # Bars stand below one another within a thread, and beside those of other threads.
        self._depths: Counter[int] = Counter()
        self._opener = threading.get_ident()
        self._lock = threading.Lock()
        self._display = RichProgress(
            TextColumn("{task.fields[indent]}{task.description}", markup=False),
            BarColumn(bar_width=24),
            _PaceColumn(lambda pace, unit: f"{pace.share:.0%}", "bold"),
            _PaceColumn(_amount_text, "dim"),
            _PaceColumn(lambda pace, unit: speed_text(pace.rate, unit), "dim"),
            _PaceColumn(lambda pace, unit: duration_text(pace.elapsed_seconds), "dim"),
            _PaceColumn(lambda pace, unit: f"{duration_text(pace.seconds_left)} left", "cyan"),
            TextColumn("{task.fields[remark]}", markup=False, style="dim"),
            console=console,
            transient=True,
            refresh_per_second=4,
        )

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Bar]:
        """Open a bar; it disappears when the work is done."""
        here = threading.get_ident()
        pace = Pace(total)
        with self._lock:
            if not self._depths.total():
                self._display.start()
            above = self._depths[here] + (self._depths[self._opener] if here != self._opener else 0)
            task = self._display.add_task(
                title,
                total=max(total, 1e-9),
                pace=pace,
                unit=unit,
                remark="",
                indent="  " * above,
            )
            self._depths[here] += 1
        try:
            yield _RichBar(self._display, task, pace)
        finally:
            with self._lock:
                self._depths[here] -= 1
                self._display.remove_task(task)
                if not self._depths.total():
                    self._display.stop()

    def say(self, text: str) -> None:
        """Print the line above the bars."""
        self._console.print(text, markup=False, highlight=False)


@contextmanager
def open_progress() -> Iterator[Progress]:
    """The `Progress` that suits standard error: bars on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        yield RichBars(console)
    else:
        yield PlainLines(_write_line)


def _write_line(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
