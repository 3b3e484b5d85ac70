"""What a recipe may name as a task: one of Laura's, `lm_eval:NAME`, or a file of the user's.

Nothing is read here but whether a file exists. What stands in it, and whether lm-eval
has such a task, is found out when the study is opened, before any data are read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from pathlib import Path

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MICRO = ("micro_facts", "micro_events", "micro_pronouns", "micro_math", "micro_code")
BENCHMARKS = (
    "hellaswag", "arc_challenge", "winogrande", "gsm8k", "humaneval", "mbpp", *MICRO,
)  # fmt: skip
# Divergences from the base, on target inputs and on source text.
DRIFT = ("kl", "kl_reverse", "kl_source", "kl_reverse_source")
LOSSES = ("target_loss", "source_loss", *DRIFT)
# Tasks of lm-eval, or in its words (evals/lm_eval/presets), that have a name of their own.
LM_EVAL_PRESETS = {"ifeval": "ifeval", "refusals": "laura_refusals"}
LEARNING = (
    "gsm8k", "humaneval", "mbpp", "micro_math", "micro_code", "target_loss", *LM_EVAL_PRESETS,
)  # fmt: skip
FORGETTING = (
    "hellaswag", "arc_challenge", "winogrande", "micro_facts", "micro_events", "micro_pronouns",
    "source_loss", *DRIFT, *LM_EVAL_PRESETS,
)  # fmt: skip
LM_EVAL = "lm_eval:"
FILE_ENDINGS = (".yaml", ".yml", ".py")
TAKEN = (*BENCHMARKS, *LOSSES, *LM_EVAL_PRESETS, "validation_loss")
_LM_EVAL_PATTERN = rf"^{LM_EVAL}[^/\\\s]+$"
_FILE_PATTERN = r"\.(yaml|yml|py)$"


def is_lm_eval(name: str) -> bool:
    """Whether a task's name means one of lm-eval's, or a preset."""
    return name.startswith(LM_EVAL) or name in LM_EVAL_PRESETS


def is_task_file(name: str) -> bool:
    """Whether a task's name means a file of the user's."""
    return name.endswith(FILE_ENDINGS) and not is_lm_eval(name)


def result_name(task: str) -> str:
    """Name of a task's result and of its file: `lm_eval.NAME`, a file's stem, or the name itself.

    >>> [result_name(task) for task in ("gsm8k", "lm_eval:piqa", "tasks/my_task.yaml")]
    ['gsm8k', 'lm_eval.piqa', 'my_task']
    """
    if is_lm_eval(task):
        return task.replace(":", ".", 1)
    return Path(task).stem if is_task_file(task) else task


def file_name_fault(path: str | Path) -> str:
    """Why no result can be named after a user's file; empty where one can."""
    name = Path(path).stem
    if not re.fullmatch(NAME_PATTERN, name):
        return (
            f"the result is named after the file, and {name!r} cannot be a name; use "
            "letters, digits, '.', '_' or '-', at most 64, starting with one of the first two"
        )
    if name == "mean":
        return "'mean' is what summaries call the mean of the tasks; give the file another name"
    return f"{name!r} is a task of Laura; give the file another name" if name in TAKEN else ""


def check_task(task: str, known: tuple[str, ...]) -> str:
    """The name as it came, if a recipe may have it.

    Args:
        task: The name.
        known: Laura's own tasks that may stand there.

    Raises:
        ValueError: with what is wrong and what is allowed, in words.
    """
    if task in known:
        return task
    if task.startswith(LM_EVAL):
        if not re.fullmatch(_LM_EVAL_PATTERN, task):
            raise ValueError(f"must be lm_eval:NAME with a name of lm-eval's, came {task!r}")
        return task
    if is_task_file(task):
        fault = file_name_fault(task)
        if fault:
            raise ValueError(fault)
        return task
    raise ValueError(
        f"is no task that can stand here, came {task[:60]!r}; {allowed_names(task, known)}, "
        "lm_eval:NAME, or the path of your own .yaml or .py file"
    )


def allowed_names(name: str, known: Collection[str]) -> str:
    """The names that are allowed, for a message; that which was probably meant comes first."""
    near = difflib.get_close_matches(name.strip().lower().replace("-", "_"), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}allowed: {', '.join(known)}"


def task_schema(known: tuple[str, ...]) -> dict[str, object]:
    """JSON Schema of a task's name, from which editors offer Laura's own."""
    return {
        "anyOf": [
            {"enum": list(known), "type": "string"},
            {
                "description": "A task of lm-eval, such as lm_eval:piqa.",
                "pattern": _LM_EVAL_PATTERN,
                "type": "string",
            },
            {
                "description": "Your own task: the path of its YAML or Python file.",
                "pattern": _FILE_PATTERN,
                "type": "string",
            },
        ]
    }


def task_file(path: str, data_dir: Path | None) -> Path | None:
    """Where a user's file lies, looked for here and then in the data folder; None if nowhere."""
    try:
        here = Path(path).expanduser()
        for place in (here, *([] if data_dir is None else [data_dir.expanduser() / here])):
            if place.is_file():
                return place
    except (OSError, ValueError, RuntimeError):  # too long a name, a null, ~name of nobody
        pass
    return None
