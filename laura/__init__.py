"""Laura: LoRA or full finetuning, at which settings, and what will the model forget?

    import laura

    study = laura.compare("micro-small")
    print(study.judgement.answer)

What it gives is imported when it is first asked for, so that `import laura` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from laura.api import (
        Evaluation,
        SeriesResults,
        StudyResults,
        Training,
        compare,
        evaluate,
        read_study,
        recommend,
        remedy,
        train,
        write_report,
    )
    from laura.results.errors import LauraError, RecipeError
    from laura.results.schema import Recommendation, Remedied
    from laura.study.callback import LauraCallback

__version__ = "0.1.0"
__all__ = [
    "Evaluation",
    "LauraCallback",
    "LauraError",
    "RecipeError",
    "Recommendation",
    "Remedied",
    "SeriesResults",
    "StudyResults",
    "Training",
    "compare",
    "evaluate",
    "read_study",
    "recommend",
    "remedy",
    "train",
    "write_report",
]

_ELSEWHERE = {
    "LauraCallback": "laura.study.callback",
    "LauraError": "laura.results.errors",
    "RecipeError": "laura.results.errors",
    "Recommendation": "laura.results.schema",
    "Remedied": "laura.results.schema",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'laura' has no attribute {name!r}")
    found = getattr(importlib.import_module(_ELSEWHERE.get(name, "laura.api")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
