"""Progress that people see, with a clock the test turns."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from laura.cli.progress import BarPace, PlainLines, RichBars, speed_text
from laura.results.progress import duration_text


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pace_of_even_work() -> None:
    clock = Clock()
    pace = BarPace(100, clock=clock)
    assert pace.rate is None and pace.seconds_left is None and pace.share == 0
    for _ in range(10):
        clock.now += 2
        pace.advance(4)
    assert pace.rate == pytest.approx(2)
    assert pace.share == pytest.approx(0.4)
    assert pace.seconds_left == pytest.approx(30)
    assert pace.elapsed_seconds == pytest.approx(20)
    clock.now += 5
    assert pace.seconds_left == pytest.approx(25), "time passes between advances too"
    clock.now += 26
    assert pace.seconds_left is None, "what was promised is over, and nothing is known"
    assert pace.words()[-1] == "-:-- left"


def test_pace_of_a_resumed_run_ignores_the_jump() -> None:
    clock = Clock()
    pace = BarPace(1000, clock=clock)
    pace.advance(900)
    for _ in range(5):
        clock.now += 10
        pace.advance(10)
    assert pace.rate == pytest.approx(1)
    assert pace.seconds_left == pytest.approx(50)


def test_pace_follows_the_last_minutes() -> None:
    clock = Clock()
    pace = BarPace(100_000, clock=clock)
    for seconds, amount in [(1, 1)] * 300 + [(1, 10)] * 300:
        clock.now += seconds
        pace.advance(amount)
    assert pace.rate == pytest.approx(10)


def test_zero_is_never_left_and_a_hundred_percent_is_the_end() -> None:
    clock = Clock()
    pace = BarPace(1000, clock=clock)
    for _ in range(3):
        clock.now += 10
        pace.advance(333)
    assert pace.words()[0] == "99%" and BarPace(100).words()[0] == "0%"
    assert pace.words()[-1] == "0:01 left"
    clock.now += 60  # a pause: a minute more or an hour, nobody knows
    assert pace.words()[-1] == "-:-- left"
    pace.advance(1)
    assert pace.words()[0] == "100%" and pace.words()[-1] == "-:-- left", "it is open still"


def test_pace_at_its_ends() -> None:
    assert BarPace(0).share == 1 and BarPace(0).seconds_left is None
    pace = BarPace(2)
    pace.advance(3)
    assert pace.share == 1


@pytest.mark.parametrize(
    ("rate", "unit", "text"),
    [
        (None, "tokens", ""),
        (5.0, "", ""),
        (1234.5, "tokens", "1,234 tokens/s"),
        (2.34, "items", "2.3 items/s"),
        (0.25, "items", "4.0 s/item"),
    ],
)
def test_speed_text(rate: float | None, unit: str, text: str) -> None:
    assert speed_text(rate, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--"), (0, "0:00"), (61.6, "1:02"), (3725, "1:02:05")]
)
def test_duration_text(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


def test_plain_lines_report_now_and_then() -> None:
    clock, out = Clock(), io.StringIO()
    lines = PlainLines(out.write, clock)
    with lines.bar("study", 4, "stages") as outer:
        outer.advance()
        with lines.bar("train lora", 100, "tokens") as inner:
            for _ in range(40):
                clock.now += 1
                inner.advance(2)
                inner.note("loss 1.5")
    lines.say("done")
    assert out.getvalue().splitlines() == [
        "study 25%, 1/4 stages, 0:15 elapsed, -:-- left > train lora 30%, 30/100 tokens, "
        "2.0 tokens/s, 0:15 elapsed, 0:35 left, loss 1.5",
        "study 25%, 1/4 stages, 0:30 elapsed, -:-- left > train lora 60%, 60/100 tokens, "
        "2.0 tokens/s, 0:30 elapsed, 0:20 left, loss 1.5",
        "train lora: finished in 0:40, loss 1.5",
        "study: finished in 0:40",
        "done",
    ]


def test_bars_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    bars = RichBars(console)
    with bars.bar("study", 4, "stages") as outer:
        outer.advance()
        with bars.bar("train [lora]", 0, "tokens") as inner:
            inner.advance(30)
            inner.note("loss [1.5]")
            bars._display.refresh()
            bars.say("a [word]")
    text = out.getvalue()
    for words in ("study", "25%", "1/4 stages", "  train [lora]", "left", "loss [1.5]", "a [word]"):
        assert words in text
    assert "\x1b[?25h" in text, "the cursor comes back"


@pytest.mark.parametrize("title", ["study", "Validation loss, target domain: measuring loss"])
def test_bars_fit_eighty_columns_and_keep_what_is_left(title: str) -> None:
    clock = Clock()
    bars = RichBars(Console(file=io.StringIO(), force_terminal=True, width=80))
    with bars.bar("study", 12, "stages") as outer, bars.bar(title, 123_456, "tokens") as inner:
        for bar in (outer, inner):
            bar.pace._clock, bar.pace._opened = clock, clock.now  # type: ignore[attr-defined]
            clock.now += 30
            bar.advance(3)
        inner.note("loss 1.234")
        seen = io.StringIO()
        table = bars._display.make_tasks_table(bars._display.tasks)
        Console(file=seen, width=80).print(table)
    study, train = seen.getvalue().splitlines()
    assert "…" not in study + train and max(len(study), len(train)) <= 80
    assert study.startswith("study") and "25%" in study and "left" in study
    assert train.strip().startswith(title) and "0%" in train and "left" in train
    assert train.rstrip().endswith("loss 1.234")


def test_bars_of_other_threads_stand_beside_one_another() -> None:
    clock, lines = Clock(), list[str]()
    plain = PlainLines(lines.append, clock)
    rich = RichBars(Console(file=io.StringIO(), force_terminal=True, width=120))
    titles: list[str] = []
    ready, seen = threading.Barrier(3), threading.Barrier(3)

    def work(name: str) -> None:
        with plain.bar(f"run {name}", 10, "steps") as bar, rich.bar(f"run {name}", 10):
            ready.wait(10)
            if name == "b":
                clock.now += 20
                bar.advance()
            seen.wait(10)

    with plain.bar("study", 2, "runs"), rich.bar("study", 2):
        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        ready.wait(10)
        titles += [task.description for task in rich._display.tasks]
        seen.wait(10)
        for thread in threads:
            thread.join()
    # Both runs stand one step below the study, neither below the other.
    assert sorted(titles) == ["  run a", "  run b", "study"]
    first, *others = lines[0].split(" | ")
    assert first.startswith("study") and len(others) == 2
    assert {other.split()[1] for other in others} == {"a", "b"}
