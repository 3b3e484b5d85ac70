"""`laura mcp`: the commands as tools of the Model Context Protocol, from data to verdict.

A tool gives what its command prints with `--json`, and ends in the same words where something
is wrong. A comparison is a process of its own, which goes on when the client has gone.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import laura
from laura.cli.console import Command, Console, mistake
from laura.cli.init import DEFAULT_BASE, InitOptions, init, look_at
from laura.cli.measurement import ShowOptions, show
from laura.cli.options import argument
from laura.cli.study import PlanOptions, plan
from laura.results.errors import MissingExtraError, StoreError, UsageError

LOG = "compare.log"
TOLD_LINES = 5
INSTRUCTIONS = """\
Laura answers, with intervals: LoRA or full finetuning, at which settings, and what will the model
forget? In this order: look_at_data, init_recipe (or one of the user's own recipes; 'micro-small'
tries it all in a minute), plan, start_compare, status until it has ended, verdict, transitions,
recommend. The words of verdict and recommend are the judge's: pass them on with their caveats.
Paths are relative to the server's folder."""


@dataclass(frozen=True, kw_only=True)
class McpOptions:
    """Where it works."""

    folder: Path = argument(Path("."), exists=True, file_okay=False, metavar="[FOLDER]")
    """Folder of data, recipes and studies, to which paths are relative."""


def mcp(console: Console, options: McpOptions) -> None:
    """Serve an agent: the Model Context Protocol on standard input.

    Its tools look at data, write a recipe, plan it, start a comparison, and tell how it stands,
    what it concludes, what was forgotten and what to take. Needs the extra 'laura-lab[mcp]'.

    \b
    Example:
      laura mcp lab
    """
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise MissingExtraError(
            "laura mcp needs the mcp package: python -m pip install 'laura-lab[mcp]'"
        ) from error

    def told(tool: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(tool)
        def call(**given: Any) -> Any:
            try:
                return tool(**given)
            except Exception as error:
                message = mistake(error)
                if message is None:
                    raise  # a bug of ours: the traceback goes to standard error
                raise ToolError(message) from error

        return call

    os.chdir(options.folder)
    server = MCPServer(
        "laura", version=laura.__version__, instructions=INSTRUCTIONS, log_level="WARNING"
    )
    for tool in TOOLS:
        server.tool()(told(tool))
    server.run()


# ----- tools: what they are given and say of themselves is what an agent reads -----


def look_at_data(
    data: str,
    base: str = DEFAULT_BASE,
    prompt: list[str] | None = None,
    completion: str | None = None,
    bad_rows: Literal["refuse", "skip"] = "refuse",
) -> dict[str, Any]:
    """Look at data before anything is trained: lengths, repeated rows, leaks into benchmarks.

    data is a file of rows (JSON Lines, JSON, CSV, Parquet), a named set, or a Hub id; base a Hub
    id, folder or registry name. prompt and completion name columns that do not tell by themselves.
    """
    from laura.cli.progress import PlainLines

    options = InitOptions(data=data, prompt=prompt, completion=completion, bad_rows=bad_rows)
    progress = PlainLines((lines := list[str]()).append)
    _, _, look = look_at(data, base, options, progress)
    return {**look.value(), "told": [line.rstrip() for line in lines]}


def init_recipe(
    data: str,
    base: str = DEFAULT_BASE,
    test: str | None = None,
    source_text: str | None = None,
    epochs: str | None = None,
    prompt: list[str] | None = None,
    completion: str | None = None,
    bad_rows: Literal["refuse", "skip"] = "refuse",
    out: str | None = None,
) -> dict[str, Any]:
    """Write a recipe for data; without test (rows never trained on) a tenth is split off.

    source_text is text that the base should still model well; epochs the passes over the data, as
    in 1,3; out the recipe's file. `content` is the recipe, which may be edited before it is used.
    """
    from laura.results.inputs import MOST_RECIPE_BYTES, read_bounded

    given = InitOptions(
        data=data, base=base, test=test, source_text=source_text, epochs=epochs, prompt=prompt,
        completion=completion, bad_rows=bad_rows, out=None if out is None else Path(out),
    )  # fmt: skip
    value = _answer(init, given)
    content = read_bounded(value["recipe"], MOST_RECIPE_BYTES)
    return {**value, "content": content.decode()}


def plan_recipe(
    recipe: str,
    overrides: list[str] | None = None,
    setting: str | None = None,
    devices: str | None = None,
    device_memory: str | None = None,
) -> dict[str, Any]:
    """What a recipe will take: memory, tokens, time and disk, and what its design could decide.

    recipe is a file or a shipped name; overrides are section.key=value each; devices as in 1,8 and
    device_memory as in 80GB ask for GPUs that are not here.
    """
    return _answer(
        plan,
        PlanOptions(
            recipe=recipe, overrides=overrides, setting=setting, devices=devices,
            device_memory=device_memory,
        ),
    )  # fmt: skip


def start_compare(
    recipe: str,
    out: str | None = None,
    overrides: list[str] | None = None,
    setting: str | None = None,
    workers: int | None = None,
    confirm: list[str] | None = None,
) -> dict[str, Any]:
    """Start a comparison, or continue one, in the background; `status` tells how it stands.

    out is the study's folder, studies/NAME by default. confirm runs ARM@RATE with fresh seeds too.
    It goes on when this server ends; ending `process` stops it, and the same call continues it.
    """
    from laura.api import resolve_recipe
    from laura.results.store import disk_faults
    from laura.study.sharing import try_lock

    chosen = resolve_recipe(recipe, overrides=overrides, setting=setting)
    folder = Path(out or f"studies/{chosen.name}")
    words = ["compare", recipe, "--out", str(folder)]
    for option, value in (("--setting", setting), ("--workers", workers)):
        words += [] if value is None else [option, str(value)]
    for option, values in (("--set", overrides), ("--confirm", confirm)):
        words += [word for value in values or () for word in (option, value)]
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / LOG).open("a", encoding="utf-8")
    with log:
        # The lock is the open file's: the comparison inherits it, and holds it to its end.
        if not try_lock(log):
            raise UsageError(f"{folder} is being compared already; `status` tells how it stands")
        process = subprocess.Popen(
            [sys.executable, "-m", "laura", *words], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
        )  # fmt: skip
    return {"study": str(folder), "process": process.pid, "log": str(folder / LOG)}


def status(study: str) -> dict[str, Any]:
    """How a comparison stands: whether it runs, runs by state, time left, what it told last.

    It has ended when `running` is false; `has_verdict` says whether there is a verdict to read.
    """
    from laura.results.inputs import MOST_JSON_BYTES, read_bounded
    from laura.results.schema import CLAIMS_FILE
    from laura.results.store import RunStore
    from laura.study.sharing import LOCK, claimed

    folder = Path(study)
    if not folder.is_dir():
        raise StoreError(f"there is no study folder {folder}; `start_compare` makes one")
    log = folder / LOG
    lines = read_bounded(log, MOST_JSON_BYTES).decode().splitlines() if log.is_file() else []
    running = False
    for lock in (log, folder / LOCK):
        if lock.is_file():
            with claimed(lock) as free:
                running |= not free
    left = [found[1] for line in lines if (found := re.search(r"([-\d:]+) left", line))]
    runs = Counter(RunStore(path.parent).state for path in folder.glob("**/runs/*/run.json"))
    return {
        "running": running,
        "runs": dict(runs),
        "time_left": left[-1] if running and left else None,
        "has_verdict": (folder / CLAIMS_FILE).is_file(),
        "told": lines[-TOLD_LINES:],
    }


def verdict(study: str) -> dict[str, Any]:
    """What a study concludes, in the judge's words: the answer first, its grounds, its caveats.

    `table` has each arm at its best rate; `report` is a page for a browser.
    """
    found = laura.read_study(study)
    report = found.report and str(found.report)
    told: dict[str, Any] = {"study": str(found.folder), "report": report}
    if found.judgement is not None:
        told |= found.judgement.model_dump(
            mode="json", include={"answer", "sentences", "others", "caveats", "gaps"}
        )
    if isinstance(found, laura.SeriesResults):
        return {**told, "settings": {name: verdict(str(one.folder))
                                     for name, one in found.settings.items()}}  # fmt: skip
    arms = found.summary.model_dump(mode="json", include={"arms", "budget", "tasks"})
    return {**told, **arms}


def transitions(
    study: str,
    task: str | None = None,
    arm: str | None = None,
    which: Literal["forgotten", "gained"] = "forgotten",
    limit: int = 5,
) -> dict[str, Any]:
    """Which items turned from right to wrong (forgotten) or back (gained) by an arm's tuning.

    Without task and arm: the shares of each, by arm and task. With both: the items themselves,
    with the answers of the base and of the arm.
    """
    if limit < 1:
        raise UsageError(f"limit is a number of items from 1, came {limit}")
    if task and arm:
        options = ShowOptions(
            study=Path(study), task=task, model=["base", arm], limit=limit, **{which: True}
        )
        return _answer(show, options)
    if task or arm:
        raise UsageError("give task and arm together, or neither for the shares of all")
    found = laura.read_study(study)
    if isinstance(found, laura.SeriesResults):
        names = ", ".join(str(one.folder) for one in found.settings.values())
        raise UsageError(f"{study} is a series; name one of its studies: {names}")
    return found.analysis.model_dump(mode="json", include={"transitions", "gaps"})


def recommend(
    study: str,
    max_forgetting: str | None = None,
    min_learning: str | None = None,
    memory: str | None = None,
    arm: str | None = None,
    adapter: str | None = None,
) -> dict[str, Any]:
    """Which configuration to take: the one that learns most and keeps the bounds, with its cost.

    Bounds are written 2%, '2 points' or '0.1 nats'; memory as 16GB. adapter is a folder to which
    the weights are copied with their record. `confirm` is the command that confirms it.
    """
    found = laura.recommend(
        study, max_forgetting=max_forgetting, min_learning=min_learning, memory=memory, arm=arm,
        adapter=adapter,
    )  # fmt: skip
    return found.model_dump(mode="json")


TOOLS: tuple[Callable[..., dict[str, Any]], ...] = (
    look_at_data, init_recipe, plan_recipe, start_compare, status, verdict, transitions, recommend,
)  # fmt: skip


class _Kept(Console):
    """A console that keeps the answer of a command instead of printing it."""

    value: dict[str, Any]

    def answer(self, value: dict[str, Any], *shown: Any) -> None:
        self.value = value


def _answer(command: Command, options: Any) -> dict[str, Any]:
    """What a command answers with `--json`; what it tells meanwhile goes to standard error."""
    from laura.cli.progress import PlainLines

    console = _Kept(PlainLines(sys.stderr.write), as_json=True)
    command(console, options)
    return console.value
