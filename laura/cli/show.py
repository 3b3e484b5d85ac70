"""The command that shows what was kept of every item: `laura show`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laura.cli.console import opened
from laura.results.errors import UsageError

if TYPE_CHECKING:
    from laura.report.samples.select import Outcome
    from laura.report.samples.show import View


TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Task to show.",
        show_default="the only one, else what there is",
    ),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="base, a run's ID or arm, ID/STEP, or an adapter. Given twice, or with a comma: "
        "answers side by side.",
        show_default="the base, or the only one",
    ),
]


def show(
    study: Annotated[
        Path,
        typer.Argument(metavar="STUDY", help="Study folder, or one that `evaluate` wrote."),
    ],
    task: TaskOption = None,
    model: ModelOption = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only what failed; of two models, what either failed.")
    ] = False,
    passed: Annotated[
        bool, typer.Option("--passed", help="Only what passed; of two models, what both passed.")
    ] = False,
    differ: Annotated[
        bool, typer.Option("--differ", help="Only where the models' verdicts differ.")
    ] = False,
    index: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Only the item with this index.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Only this sample of items with several."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="No more than N.", show_default="all"),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Show long prompts whole, not only their end.")
    ] = False,
    no_pager: Annotated[
        bool, typer.Option("--no-pager", help="Print to the terminal at once.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text, for machines.")
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
    with opened(json) as desk:
        wanted = _outcome(failed, passed, differ)
        from laura.report.samples.select import SampleFilter
        from laura.report.samples.show import Overview, open_view

        # What the output's encoding lacks is escaped, and ends nothing.
        getattr(sys.stdout, "reconfigure", lambda errors: None)(errors="backslashreplace")
        which = SampleFilter(wanted, index, sample, limit)
        view = open_view(study, task, model or [], which, full)
        if json:
            desk.answer(view.to_json())
        elif isinstance(view, Overview) or not sys.stdout.isatty():
            _write(view.lines())
        else:
            _draw(view, not no_pager)


def _outcome(failed: bool, passed: bool, differ: bool) -> Outcome:
    if failed + passed + differ > 1:
        raise UsageError("--failed, --passed and --differ exclude one another; give one of them")
    return "failed" if failed else "passed" if passed else "differ" if differ else "any"


def _write(lines: Iterable[str]) -> None:
    """Print line by line, so that whoever reads the first need not wait for the last."""
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _draw(view: View, use_pager: bool) -> None:
    from rich.text import Text

    from laura.cli.pager import paged
    from laura.report.samples.terminal import drawn

    with paged(use_pager) as console:
        for line in [*view.heading(), "", *view.table()]:
            console.print(Text(line))
        if not view.are_losses:
            for page in view.pages():
                console.print(drawn(page, console.width))
