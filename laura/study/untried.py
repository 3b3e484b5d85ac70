"""What a study leaves open: the things a better configuration might hide behind. No torch."""

from __future__ import annotations

from laura.study.choosing import why_none
from laura.study.claims.settings import DROPOUTS, Kind, Setting


def untried(setting: Setting, chosen: Kind | None, budget: float | None) -> list[str]:
    """What was not tried, in sentences.

    Args:
        setting: The study.
        chosen: The arm that is recommended, if one is.
        budget: Its budget.
    """
    evidence, arms, told = setting.evidence, setting.arms, list[str]()
    recipe = evidence.recipe
    for name in recipe.arms:
        rates, edge = evidence.rates(name), evidence.edge(name)
        if name not in evidence.best:
            told.append(f"{name} {why_none(name, evidence)}.")
        elif len(rates) == 1:
            told.append(f"{name} was tried at the one learning rate {rates[0]:g}.")
        elif edge:
            ends = {"low": f"below {rates[0]:g}", "high": f"above {rates[-1]:g}"}
            beyond = ends.get(edge, f"below {rates[0]:g} or above {rates[-1]:g}")
            told.append(f"{name} is best at the end of its rates: none {beyond} was tried.")
    if budget is not None and budget == max(setting.budgets):
        told.append(f"No budget above {budget:,g} was tried.")
    methods = {arm.method for arm in arms}
    told += [f"No arm of {name} was tried." for name in ("full", "lora") if name not in methods]
    loras = [arm for arm in arms if arm.method == "lora"]
    if loras:
        ranks = sorted({arm.rank for arm in loras})
        told.append(f"LoRA was tried at rank {', '.join(map(str, ranks))} only.")
        targets = sorted({arm.targets or "other" for arm in loras})
        told.append(f"LoRA was tried on {', '.join(targets)} modules only.")
    if not any(arm.number("replay") for arm in arms):
        told.append("Replay of source data was not tried.")
    if not any(arm.number(key) for arm in arms for key in ("weight_decay", *DROPOUTS)):
        told.append("Neither weight decay nor dropout of full finetuning was tried.")
    if chosen is not None and recipe.budget.points == "hot":
        told.append("The budget is a point of a longer run whose rate had not come down yet.")
    told.append(f"One optimiser was used ({recipe.train.optimiser}), and one batch size.")
    return told
