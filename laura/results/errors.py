"""The errors Laura raises, as a tree.

Every error a user can cause is a `LauraError`: the door prints its message and
exits with 2. Anything else that escapes is our own bug and exits with 1.
Leaves are also the standard exception a Python programmer would catch.

    LauraError
    ├── RecipeError (ValueError)        every fault of a recipe at once
    ├── UsageError (ValueError)         a command called with impossible arguments
    ├── ModelError (ValueError)         a model folder, GGUF file or tokenizer is unusable
    ├── AdapterError (ValueError)       an adapter or its targets do not fit the model
    ├── ShapeError (ValueError)         an array has the wrong number of dimensions or size
    ├── GrammarError (ValueError)       a schema or pattern that no answer can be held to
    ├── DataError (ValueError)          rows are missing, empty, too long or overlap
    ├── CheckpointError (ValueError)    a checkpoint fails its checksums
    ├── EvidenceError (ValueError)      a study cannot carry the judgement that is asked for
    ├── DivergenceError (ArithmeticError)  training left the finite numbers
    ├── StoreError (OSError)            disk full, no permission, not a study folder
    ├── HubError (ConnectionError)      the Hub or a package index cannot be reached
    ├── SandboxError (OSError)          generated code cannot be confined on this machine
    └── MissingExtraError (ImportError) an optional dependency is not installed
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_GATE = 4  # `laura gate` only: the evidence suffices, and the bound is not kept
EXIT_INTERRUPTED = 130


class LauraError(Exception):
    """Base of every error that is the user's to mend; the door exits with 2."""


@dataclass(frozen=True)
class Fault:
    """One mistake in a recipe.

    Attributes:
        path: Where it stands, dotted, as in `arms.lora.rank`.
        problem: What came and what is allowed, in one sentence.
        line: Line of the recipe file, counted from 1, where known.
    """

    path: str
    problem: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.path} (line {self.line})" if self.line else self.path
        return f"{place}: {self.problem}"


class RecipeError(LauraError, ValueError):
    """A recipe has faults; they are listed, not only the first, up to `MOST_TOLD`."""

    MOST_TOLD = 200

    def __init__(self, faults: list[Fault], source: str = "recipe") -> None:
        self.faults = faults
        count = "1 mistake" if len(faults) == 1 else f"{len(faults)} mistakes"
        told = [f"  - {fault}" for fault in faults[: self.MOST_TOLD]]
        if len(faults) > self.MOST_TOLD:
            told.append(f"  - and {len(faults) - self.MOST_TOLD} more")
        lines = "\n".join(told)
        super().__init__(f"{source} has {count}:\n{lines}")


def first_line(error: Exception) -> str:
    """What an error says before it lists anything."""
    return str(error).splitlines()[0].rstrip(":")


class UsageError(LauraError, ValueError):
    """A command was called with arguments that cannot be meant."""


class ModelError(LauraError, ValueError):
    """A model folder, Hub id, GGUF file or tokenizer cannot be used."""


class AdapterError(LauraError, ValueError):
    """An adapter, or the modules it targets, does not fit the model."""


class ShapeError(LauraError, ValueError):
    """An array has the wrong number of dimensions or the wrong size."""


class GrammarError(LauraError, ValueError):
    """A schema or a pattern that no answer can be held to."""


class DataError(LauraError, ValueError):
    """Data is missing, empty, lacks a field, is too long, or overlaps."""


class CheckpointError(LauraError, ValueError):
    """A checkpoint is incomplete or does not match its checksums."""


class EvidenceError(LauraError, ValueError):
    """A study has too few seeds, items or runs for what is asked; the message says what to run."""


class DivergenceError(LauraError, ArithmeticError):
    """Training left the finite numbers; the run is recorded as diverged."""


class StoreError(LauraError, OSError):
    """A folder cannot be read or written, or is not what it should be."""


class HubError(LauraError, ConnectionError):
    """The Hub or a package index cannot be reached or refuses."""


class SandboxError(LauraError, OSError):
    """Generated code cannot be confined here, so none is run; the message says what to allow."""


class MissingExtraError(LauraError, ImportError):
    """An optional dependency is needed; the message names the extra."""
