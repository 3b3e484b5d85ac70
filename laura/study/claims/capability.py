"""Whether a design could have given either answer: asked before a run and before a verdict.

A statement about methods needs arms that were tuned, that learnt something, and scores
that can still move: above the floor of guessing, below the ceiling.
"""

from __future__ import annotations

from laura.results.statistics import MARGIN, TooThin, count
from laura.study.claims.settings import FORGETTING, LEARNING, Kind, Setting

FEWEST_RATES = 3  # so that a rate can be inside its list


def tuned(setting: Setting, *arms: Kind) -> None:
    """Every arm was run at several rates; one made elsewhere is what it is.

    Raises:
        TooThin: an arm was run at fewer than three rates.
    """
    for arm in arms:
        rates = len(setting.evidence.rates(arm.name))
        if rates < FEWEST_RATES and not arm.settings.get("external"):
            raise TooThin(
                f"{arm.name} was run at {count(rates, 'rate')}, so it is not tuned; give it "
                f"{FEWEST_RATES} or more"
            )


def learnt(setting: Setting, budget: float, *arms: Kind) -> None:
    """Every arm surely learnt something.

    Raises:
        TooThin: the interval of an arm's gain is not above 0.
    """
    for arm in arms:
        if setting.gain(arm, LEARNING, budget).interval()[0] <= 0:
            raise TooThin(f"{arm.name} has not surely learnt anything")


def off_floor(setting: Setting, budget: float, *arms: Kind) -> str:
    """Some arm's score of forgetting is above guessing; "" or which arms are at the floor.

    An arm is there within 2 points of what guessing scores: by its mean, since seeds that chose
    other rates give an interval that reaches down to guessing when no seed is near it.

    Raises:
        TooThin: the base, or all of the arms, are no better than guessing.
    """
    chance = chance_of(setting)
    if chance is None:
        return ""
    base = setting.base_scores(FORGETTING)
    if setting.contrast([(1.0, base)]).interval()[0] <= chance:
        raise TooThin("the base is no better than guessing, so it can forget nothing")
    at_floor = [
        arm.name
        for arm in arms
        if setting.contrast([(1.0, setting.arm_scores(arm, budget, FORGETTING))]).value
        <= chance + MARGIN
    ]
    if len(at_floor) == len(arms) > 1:
        raise TooThin(
            f"{' and '.join(at_floor)} both end at guessing ({100 * chance:.1f} points): what "
            "either forgot beyond cannot be seen; lower the rates or the budget"
        )
    return " and ".join(at_floor)


def off_floor_somewhere(setting: Setting, *arms: Kind) -> None:
    """Some arm keeps more than guessing at some rate and budget, or no front can be told apart.

    Raises:
        TooThin: at every point of every arm the score of forgetting is within 2 points of guessing.
    """
    chance = chance_of(setting)
    if chance is None:
        return
    for arm in arms:
        for by_seed in setting.configurations(arm).values():
            results = {seed: point.results for seed, point in by_seed.items()}
            kept = setting.scores(results, FORGETTING, arm.name)
            score = sum(float(table.mean()) for table in kept.tables.values()) / len(kept.tables)
            if score > chance + MARGIN:
                return
    names = " and ".join(arm.name for arm in arms)
    raise TooThin(f"{names} are at guessing at every rate and budget; lower the rates")


def below_ceiling(setting: Setting, budget: float, *arms: Kind) -> None:
    """Some arm's score of learning can still rise.

    Raises:
        TooThin: all of them are within 2 points of every answer right.
    """
    if setting.unit(LEARNING) != "share":
        return
    scores = [setting.arm_scores(arm, budget, LEARNING) for arm in arms]
    values = [setting.contrast([(1.0, own)]).value for own in scores]
    if min(values) >= 1 - MARGIN:
        raise TooThin(
            f"{' and '.join(arm.name for arm in arms)} are within {100 * MARGIN:g} points of every "
            "answer right: a difference in learning cannot be seen; take a harder task or a "
            "smaller budget"
        )


def chance_of(setting: Setting) -> float | None:
    """What guessing scores on the mean of the forgetting tasks; None where that is not known.

    A question with choices holds the log-likelihood of each; others have no chance.
    """
    shares = []
    for task in setting.tasks(FORGETTING):
        result = setting.evidence.base.get(task)
        if result is None or not all("loglikelihoods" in item for item in result.items):
            return None
        shares.append(sum(1 / len(i["loglikelihoods"]) for i in result.items) / result.n)
    return sum(shares) / len(shares) if shares else None
