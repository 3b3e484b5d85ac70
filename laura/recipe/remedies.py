"""The tables of remedies against forgetting: what an arm may name at each place, and the files.

One from elsewhere is a file in any package and one line, before a recipe is read:

    TOKEN_WEIGHTS["mine"] = Remedy("my_package.my_weight")

What a file holds: `laura.training.remedies`. Formulas and sources: docs/papers.md. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from laura.recipe.tasks import allowed_names


@dataclass(frozen=True)
class Remedy:
    """A line of a table.

    Attributes:
        file: The module it stands in.
        strength: Its strength where an arm gives none; 0 always means that it is not used.
        most: The largest strength.
        reads_base: Whether it asks what the base makes of the same tokens: one forward pass
            more, and in full finetuning a copy of the trained weights as they began.
        normalised: Of a token weight: whether the mean over a step is made 1.
        lora_only: Whether it holds back LoRA's two factors.
        samples: Of a policy: answers to each question where an arm gives none. One that reads no
            base has them graded.
    """

    file: str
    strength: float = 1.0
    most: float = inf
    reads_base: bool = False
    normalised: bool = False
    lora_only: bool = False
    samples: int = 1


_HERE = "laura.training"
TOKEN_WEIGHTS = {
    "dft": Remedy(f"{_HERE}.token_weights.dft", most=10),
    "eaft": Remedy(f"{_HERE}.token_weights.eaft", most=10),
    "talr": Remedy(f"{_HERE}.token_weights.dft", most=10, normalised=True),
    "stm": Remedy(f"{_HERE}.token_weights.stm", 0.4, most=1, reads_base=True),
    "flow": Remedy(f"{_HERE}.token_weights.flow", most=10, reads_base=True),
}
PENALTIES = {
    "kl": Remedy(f"{_HERE}.penalties.kl", 0.1, reads_base=True),
    "kl_reverse": Remedy(f"{_HERE}.penalties.kl_reverse", 0.1, reads_base=True),
    "clora": Remedy(f"{_HERE}.penalties.clora", lora_only=True),
}
POLICIES = {
    "sdft": Remedy(f"{_HERE}.penalties.kl_reverse", reads_base=True),
    "grpo": Remedy(f"{_HERE}.policies.grpo", samples=8),
}
PACES = {"finch": Remedy(f"{_HERE}.paces.finch", 0.5, most=2)}
AVERAGES = {
    "ema": Remedy(f"{_HERE}.averages.ema", 0.999, most=0.99999),
    "bema": Remedy(f"{_HERE}.averages.bema", 0.5, most=1),
}
# By the key of an arm; its strength is the key with `_strength` behind it.
PLACES: Mapping[str, dict[str, Remedy]] = {
    "token_weight": TOKEN_WEIGHTS,
    "penalty": PENALTIES,
    "policy": POLICIES,
    "pace": PACES,
    "average": AVERAGES,
}
# What may be done to a finished checkpoint: functions of `laura.models.after`.
AFTER = ("scale", "intruders")


def check_remedy(name: str, place: str) -> str:
    """The name as it came, if the table of its place has it.

    Raises:
        ValueError: with what is allowed, in words.
    """
    if name in PLACES[place]:
        return name
    allowed = allowed_names(name, PLACES[place])
    raise ValueError(f"is no {place.replace('_', ' ')}, came {name[:60]!r}; {allowed}, or null")


def remedy_schema(place: str) -> dict[str, object]:
    """JSON Schema of a place's names."""
    return {"enum": list(PLACES[place]), "type": "string"}
