"""A short polish of a finished adapter for `laura remedy`: a little more training, near the base.

Texts that the base writes are replayed beside the user's rows, and the divergence from the base
is added to the loss (`penalty: kl`), once in each strength that there is time for. A quarter of
the minutes at most goes to the texts; the pace of a few steps, which are thrown away, tells how
many tokens fit into the rest. That is written down: a polish that was stopped goes on as the same.

    OUT/polish/HASH/plan.json    texts, tokens and strengths that fit
    OUT/polish/HASH/samples      the texts
    OUT/polish/HASH/NAME         the run of each strength
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from laura.data.examples import Example
from laura.data.mixing import Replay
from laura.data.packing import Fitted, fit
from laura.data.templates import Encoded
from laura.models.adapters import load_adapter, save_adapter
from laura.models.lora import detach
from laura.recipe.sections import (
    BASE_SAMPLES,
    BudgetSection,
    DataSection,
    LoraArm,
    MeasureSection,
    Recipe,
    ReplaySource,
    Source,
    TrainSection,
)
from laura.results.progress import SILENT, Progress
from laura.results.schema import Polish
from laura.results.store import RunStore, content_hash, read_json, write_json
from laura.study.evaluation import marked
from laura.study.material import ExampleEncoder
from laura.study.replay import ReplayReader
from laura.study.workbench import Workbench
from laura.training.batches import plan_batches
from laura.training.optimisers import StepRule
from laura.training.remedies import objective_of, rule_of
from laura.training.run import train_runs

RATE, STRENGTHS, REPLAY, EPOCHS = 3e-4, (0.03, 0.1), 0.25, 3
TRAIN = TrainSection(batch_tokens=1024, row_tokens=1024)
FEW_STEPS, PACE_STEPS = 10, 4
FEW_TEXTS, MOST_TEXTS, TEXT_TOKENS = 16, 256, 128


@dataclass(frozen=True)
class Polisher:
    """Polishes one adapter.

    Attributes:
        bench: Holds the base.
        name: Which candidate it goes on from,
        start: and its folder.
        examples: The user's rows.
        measured: What is measured on, by name; texts of the base that stand there are left out.
        minutes: For texts and training together.
        template: As in a recipe's `data`.
        section: The precision in which the base writes.
        out: The folder of `laura remedy`.
        progress: Where to report.
    """

    bench: Workbench
    name: str
    start: Path
    examples: Sequence[Example]
    measured: Mapping[str, Sequence[Example]]
    minutes: float
    template: Any
    section: MeasureSection
    out: Path
    progress: Progress = SILENT

    def polish(self) -> tuple[dict[str, Path], Polish]:
        """Train, or go on; name to folder of each polished adapter, and what was done.

        Raises:
            DataError: no row fits, or the base writes nothing that could be replayed.
        """
        file = self.folder / "plan.json"
        if not file.is_file():
            write_json(file, self._planned())
        plan = read_json(file)
        replay, found, trained, seconds = self._replay(plan["texts"]), {}, {}, plan["drawing"]
        for strength in plan["strengths"]:
            name = f"polish-kl-{strength:g}"
            run = RunStore(self.folder / name)
            end = self._train(run, strength, plan["tokens"], replay, name, plan["seconds"])
            trained[name] = run.metrics()[-1]["tokens"]
            seconds += sum(row["seconds"] for row in run.metrics())
            if run.state == "done":
                found[name] = run.checkpoint(end)
            else:
                self.progress.say(f"{name} diverged: {run.reason}")
        done = Polish(
            start=self.name, minutes=self.minutes, seconds=seconds, learning_rate=RATE,
            replay=REPLAY, texts=plan["texts"], tokens=trained, left_out=plan["left_out"],
        )  # fmt: skip
        return found, done

    @cached_property
    def folder(self) -> Path:
        """Named by everything that determines the runs but the machine's pace."""
        rows = [example.digest for example in self.examples]
        settings = [RATE, STRENGTHS, REPLAY, EPOCHS, TRAIN.identity(), self.template, self.minutes]
        start = marked(self.name, {self.name: self.start})
        identity = [self.bench.base.fingerprint, start, rows, settings, str(self.section.precision)]
        return self.out / "polish" / content_hash(identity)[:12]

    def _planned(self) -> dict[str, Any]:
        """What fits into the minutes, from now on."""
        begun = time.monotonic()
        self._replay(FEW_TEXTS)
        quarter, took = 15 * self.minutes, time.monotonic() - begun
        texts = min(MOST_TEXTS, max(FEW_TEXTS, int(FEW_TEXTS * (quarter - took) / took)))
        replay = self._replay(texts)
        drawn = time.monotonic() - begun
        with TemporaryDirectory() as place:
            run = RunStore(Path(place))
            self._train(run, STRENGTHS[0], PACE_STEPS * TRAIN.batch_tokens, replay, "pace")
            first, *rows = run.metrics()
        pace = sum(row["seconds"] for row in rows) / (rows[-1]["tokens"] - first["tokens"])
        left = max(0.0, 60 * self.minutes - (time.monotonic() - begun))
        few = pace * FEW_STEPS * TRAIN.batch_tokens
        strengths = STRENGTHS[: int(left / few)]
        each = left / max(1, len(strengths))
        enough = EPOCHS * sum(self._fitted.lengths) / (1 - REPLAY)
        why = (
            f"{FEW_STEPS} steps do not fit into {self.minutes:g} minutes on this machine; give "
            f"{(drawn + 1.5 * few) / 60:.1f}"
        )
        return {
            "texts": texts,
            "drawing": drawn,
            "strengths": strengths,
            "tokens": int(min(enough, each / pace)),
            "seconds": each,
            "left_out": None if strengths else why,
        }

    @cached_property
    def _encoder(self) -> ExampleEncoder:
        return ExampleEncoder(self.bench.base.tokenizer, self.template, "instruct")

    @cached_property
    def _encoded(self) -> list[Encoded]:
        return self._encoder.to_learn(self.examples)

    @cached_property
    def _fitted(self) -> Fitted:
        return fit(self._encoded, TRAIN.row_tokens, "drop", progress=self.progress)

    def _replay(self, texts: int) -> Replay | None:
        """So many texts, drawn or read, ready to be mixed."""
        recipe = Recipe(
            name="polish",
            base=self.bench.section,
            data=DataSection(
                train=Source(source="given"),
                replay=[ReplaySource(source=BASE_SAMPLES, count=texts, tokens=TEXT_TOKENS)],
            ),
            budget=BudgetSection(epochs=[EPOCHS]),
            arms={"polish": LoraArm(method="lora", replay=REPLAY)},
            train=TRAIN,
            measure=self.section,
        )
        given = (recipe, self.bench, self._encoder, self.measured, self.folder, None, self.progress)
        return ReplayReader(*given).read().mixture(REPLAY)

    def _train(
        self,
        run: RunStore,
        strength: float,
        tokens: int,
        replay: Replay | None,
        title: str,
        seconds: float = math.inf,
    ) -> int:
        """Train the adapter, or go on, no longer than so many seconds; the last step."""
        base, budget = self.bench.base, BudgetSection(tokens=[tokens])
        arm = LoraArm(method="lora", penalty="kl", penalty_strength=strength)
        plan = plan_batches(self._encoded, self._fitted, TRAIN, budget, 0, replay)
        settings, (source, revision) = load_adapter(base.model, self.start), base.source()
        write = partial(save_adapter, settings=settings, base_name=source, revision=revision)
        until = time.monotonic() + seconds - sum(row["seconds"] for row in run.metrics())
        train = partial(
            train_runs, base.model, [(run, RATE)], TRAIN, rule=rule_of(arm, StepRule()), seed=0,
            write_weights=partial(write, base.model), objective=objective_of(arm), title=title,
            progress=self.progress,
        )  # fmt: skip
        try:
            if train(plan, halt=lambda: time.monotonic() >= until) == ["open"]:
                # The machine became slower: what it has learnt by now is kept.
                plan = replace(plan, points=[len(run.metrics())])
                train(plan)
        finally:
            detach(base.model)
        return plan.points[-1]
