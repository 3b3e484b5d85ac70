"""`laura init`: a recipe for one's own data, after a first look at them."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from laura.cli.console import Console
from laura.cli.options import DATA, argument, option
from laura.results.errors import UsageError

if TYPE_CHECKING:
    from laura.data.examples import Example
    from laura.recipe.sections import Source
    from laura.results.progress import Progress
    from laura.study.first_look import FirstLook

DEFAULT_BASE = "micro"
DEFAULT_EPOCHS = "1,3"
MOST_VALIDATION_ROWS = 200


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """What a recipe is written for."""

    data: str | None = argument(None, metavar="[DATA]")
    """File of rows (JSON Lines, JSON, CSV, Parquet), a named set, or a Hub id."""
    base: str | None = option(metavar="BASE", show_default=DEFAULT_BASE)
    """The model before adaptation: Hub id, folder, or a registry name."""
    test: str | None = option(metavar="DATA", show_default="a tenth of a file's rows is split off")
    """Rows that are never trained on."""
    source_text: str | None = option(metavar="DATA", show_default="wikitext; micro-source")
    """Text that the base should still model well."""
    epochs: str | None = option(metavar="1,3,...", show_default=DEFAULT_EPOCHS)
    """Passes over the data, measured after each."""
    prompt: list[str] | None = option(metavar="COLUMN")
    """Column that holds the question, where its name does not tell. Repeatable."""
    completion: str | None = option(metavar="COLUMN")
    """Column that holds the answer, where its name does not tell."""
    bad_rows: Literal["refuse", "skip"] = option(default="refuse")
    """What becomes of rows that do not fit."""
    out: Path | None = option(metavar="FILE", show_default="NAME.yaml, by the data's name")
    """File of the recipe."""
    data_dir: Path | None = option(**DATA)


def init(console: Console, options: InitOptions) -> None:
    """Write a recipe for your data, after a first look at them.

    Asks for what is not given, on a terminal. Tells lengths, repeated rows and rows that
    also stand in the benchmarks, and splits off a test where there is none.

    \b
    Example:
      laura init support.csv --base HuggingFaceTB/SmolLM2-360M
    """
    asks = sys.stdin.isatty() and not console.as_json
    data = options.data or _asked("Data to learn from (file, named set, or Hub id)", None, asks)
    base = options.base or _asked("Base model", DEFAULT_BASE, asks)
    test = options.test or _asked("Rows never trained on (empty: split some off)", "", asks)
    usual = "micro-source" if base == "micro" else "wikitext"
    text = options.source_text or _asked("Text it should still model well", usual, asks)
    epochs = _numbers(options.epochs or _asked("Passes over the data", DEFAULT_EPOCHS, asks))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data).name.split(".")[0]).strip("-._") or "study"
    out = options.out or Path(f"{name}.yaml")
    folder = out.parent / f"{out.stem}-data"
    if there := next((path for path in (out, folder) if path.exists()), None):
        raise UsageError(f"{there} is there already; give --out another file, or delete it")
    from laura.data.named import NAMED
    from laura.recipe.reading import parse_recipe
    from laura.recipe.starter import Starter, row_tokens
    from laura.results.store import write_text
    from laura.study.first_look import split_off_test

    how = _how(options)
    train, held = {"source": data, **how}, {"source": test, **how}
    source, examples, look = look_at(data, base, options, console.progress)
    console.progress.say(f"{data}: " + "\n".join(look.lines()))
    if not test and data in NAMED and "test" in NAMED[data].splits:
        held = {"source": data, "split": "test"}
    elif not test:
        files = split_off_test(source, examples, folder, options.data_dir, console.progress)
        train, held = ({"source": str(file), **how} for file in files)
    rows = max(1, min(MOST_VALIDATION_ROWS, look.rows // 10))
    made = Starter(name, base, train, held, text, epochs, row_tokens(look.longest_tokens), rows)
    written = made.text(str(out))
    parse_recipe(written, source=str(out), data_dir=options.data_dir)
    write_text(out, written)
    value = {"recipe": str(out), "train": train, "test": held, "first_look": look.value()}
    console.answer(value, f"{out} is written. Read it, then:\n  laura plan {out}\n"
                          f"  laura compare {out}")  # fmt: skip


def look_at(
    data: str, base: str, options: InitOptions, progress: Progress
) -> tuple[Source, list[Example], FirstLook]:
    """What a recipe for data is written by: the source, all its rows, and the look at them.

    Raises:
        DataError: they cannot be read, or are too large to be read whole.
    """
    from laura.data.sources import is_endless, stream_examples, too_large
    from laura.recipe.sections import BaseSection, Source
    from laura.recipe.starter import forgetting_tasks
    from laura.study.first_look import first_look
    from laura.study.plan.planning import tokenizer_file

    source = Source.model_validate({"source": data, **_how(options)})
    if is_endless(source, options.data_dir):
        raise too_large(source)
    examples = list(stream_examples(source, options.data_dir, progress.say))
    tokenizer = tokenizer_file(BaseSection(model=base))
    look = first_look(examples, forgetting_tasks(base), tokenizer, options.data_dir)
    return source, examples, look


def _asked(question: str, usual: str | None, asks: bool) -> str:
    """The answer of who sits at a terminal; elsewhere the usual one."""
    if asks:
        import typer

        return str(typer.prompt(question, default=usual, err=True)).strip()
    if usual is None:
        raise UsageError("laura init needs DATA: a file of rows, a named set, or a Hub id")
    return usual


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--epochs wants numbers, as in --epochs 1,3; came {text}") from None
    return [int(number) if number.is_integer() else number for number in found]


def _how(options: InitOptions) -> dict[str, Any]:
    """What the recipe says of a source besides its name."""
    if bool(options.prompt) != bool(options.completion):
        raise UsageError("--prompt and --completion name two columns; give both")
    how: dict[str, Any] = {}
    if options.prompt:
        how["columns"] = {"prompt": options.prompt, "completion": options.completion}
    if options.bad_rows == "skip":
        how["bad_rows"] = "skip"
    return how
