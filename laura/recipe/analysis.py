"""The `analysis` section of a recipe: what is read out of the saved weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from laura.recipe.section import Section


class AnalysisSection(Section):
    """What is read out of saved weights, after the last run."""

    spectra: Literal["none", "final", "all"] = Field(
        "none",
        description="Rank and spectrum of every matrix's update, in the runs at each arm's best "
        "rate. `final`: at the last budget; `all`: at every budget point.",
    )
    intruders: bool = Field(
        False,
        description="Also count intruder dimensions (Shuttleworth et al. 2024); takes longer.",
    )
    intruder_k: int = Field(
        10, ge=1, description="Leading directions of a tuned matrix that may be intruders."
    )
    intruder_eps: float = Field(
        0.5,
        gt=0,
        le=1,
        description="A direction is an intruder if its absolute cosine with every direction of "
        "the base is below this.",
    )
    subspace_k: int | None = Field(
        8,
        ge=1,
        description="Leading directions of the updates of the best lora and the best full arm "
        "that are compared, matrix by matrix; null for no comparison.",
    )
