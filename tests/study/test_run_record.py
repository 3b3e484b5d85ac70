"""Which runs of a study folder are of the recipe that is asked about."""

from __future__ import annotations

from typing import Any

from laura.recipe import LoraArm, TrainSection
from laura.study.run_record import UNTRAINED, is_of


def test_a_run_under_another_train_section_is_left_out() -> None:
    arm, train = LoraArm(method="lora"), TrainSection(batch_tokens=4096)

    def record(section: TrainSection) -> dict[str, Any]:
        made = section.identity(UNTRAINED) | {"precision": "torch.float32"}
        return {"identity": {"arm": ["x", arm.identity()], "train": made}}

    assert is_of(record(train), arm, train, {})
    told = train.model_copy(update={"validate_every": 3, "cohort": 4})
    assert is_of(record(train), arm, told, {}), "neither changes what a run becomes"
    assert not is_of(record(TrainSection()), arm, train, {})
    assert is_of({"identity": {"arm": ["x", arm.identity()]}}, arm, train, {}), "a trainer's"
