"""A short polish of a finished adapter for `laura remedy`: a little more training, near the base.

Texts that the base writes are replayed beside the user's rows, and the divergence from the base
is added to the loss (`penalty: kl`), once in each strength that there is time for. A quarter of
the minutes at most goes to the texts; the pace of a few steps, which are thrown away, tells how
many tokens fit into the rest. That is written down: a polish that was stopped goes on as the same.

    OUT/polish/HASH/plan.json    what fits
    OUT/polish/HASH/samples      the texts
    OUT/polish/HASH/NAME         the run of each strength
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import inf
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from laura.data.examples import Example
from laura.data.mixing import Replay
from laura.data.packing import Fitted, fit
from laura.data.templates import Encoded
from laura.models.adapters import load_adapter, save_adapter
from laura.models.lora import detach
from laura.recipe.sections import BASE_SAMPLES, BudgetSection, MeasureSection, Recipe, TrainSection
from laura.results.progress import Progress
from laura.results.schema import Polish, write_file
from laura.results.store import RunStore, content_hash, read_json
from laura.study.evaluation import marked
from laura.study.material import ExampleEncoder
from laura.study.replay import ReplayReader
from laura.study.workbench import Workbench
from laura.training.batches import plan_batches
from laura.training.optimisers import StepRule
from laura.training.remedies import objective_of, rule_of
from laura.training.run import train_runs

# The middle of LoRA's rates; 0.3 and more of the divergence unlearn (LOG.md).
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
    progress: Progress

    def polish(self) -> tuple[dict[str, Path], Polish]:
        """Train, or go on; name to folder of each polished adapter, and what was done.

        Raises:
            DataError: no row fits, or the base writes nothing that could be replayed.
        """
        file = self.folder / "plan.json"
        plan = Polish.model_validate(read_json(file)) if file.is_file() else self._planned()
        write_file(file, plan)
        replay, found, trained = self._replay(plan.texts), {}, {}
        for name, tokens in plan.tokens.items():
            run = RunStore(self.folder / name)
            end = self._train(run, name, tokens, replay, plan.seconds)
            if run.state == "done":
                found[name], trained[name] = run.checkpoint(end), run.metrics()[-1]["tokens"]
            else:
                self.progress.say(f"{name} diverged: {run.reason}")
        return found, plan.model_copy(update={"tokens": trained})

    @cached_property
    def folder(self) -> Path:
        """Named by everything that determines the runs but the machine's pace."""
        rows = [example.digest for example in self.examples]
        start, own = marked(self.name, {self.name: self.start}), self._recipe(1)
        given = [RATE, self.minutes, own.model_dump(mode="json"), rows]
        place = content_hash([self.bench.base.fingerprint, start, given])[:12]
        return self.out / "polish" / place

    def _planned(self) -> Polish:
        """What fits into the minutes, from now on."""
        begun = time.monotonic()
        self._replay(FEW_TEXTS)
        often = 15 * self.minutes / (time.monotonic() - begun) - 1
        texts = min(MOST_TEXTS, max(FEW_TEXTS, int(FEW_TEXTS * often)))
        replay, arms = self._replay(texts), [*self._recipe(1).arms]
        with TemporaryDirectory() as place:
            run = RunStore(Path(place) / "pace")
            self._train(run, arms[0], PACE_STEPS * TRAIN.batch_tokens, replay)
            pace = median([row["tokens_per_second"] for row in run.metrics()] or [0.0])
        left = max(0.0, 60 * self.minutes - (time.monotonic() - begun))
        arms = arms[: int(left * pace / (FEW_STEPS * TRAIN.batch_tokens))]
        each, most = left / max(1, len(arms)), EPOCHS * sum(self._rows[1].lengths) / (1 - REPLAY)
        # A few steps are no training, and no reason to measure another adapter.
        why = f"{FEW_STEPS} steps do not fit into {self.minutes:g} minutes here; give more"
        return Polish(
            start=self.name, minutes=self.minutes, seconds=each, learning_rate=RATE, texts=texts,
            replay=REPLAY, tokens=dict.fromkeys(arms, int(min(most, each * pace))),
            left_out=None if arms else why,
        )  # fmt: skip

    def _recipe(self, texts: int) -> Recipe:
        arm = {"method": "lora", "replay": REPLAY, "penalty": "kl"}
        source = {"source": BASE_SAMPLES, "count": texts, "tokens": TEXT_TOKENS}
        return Recipe.model_validate({
            "name": "polish", "base": {"model": "given"}, "budget": {"epochs": [EPOCHS]},
            "data": {"train": "given", "template": self.template, "replay": [source]},
            "arms": {f"polish-kl-{one:g}": {**arm, "penalty_strength": one} for one in STRENGTHS},
            "train": TRAIN, "measure": self.section,
        })  # fmt: skip

    @cached_property
    def _encoder(self) -> ExampleEncoder:
        return ExampleEncoder(self.bench.base.tokenizer, self.template, "instruct")

    @cached_property
    def _rows(self) -> tuple[list[Encoded], Fitted]:
        encoded = self._encoder.to_learn(self.examples)
        return encoded, fit(encoded, TRAIN.row_tokens, "drop", progress=self.progress)

    def _replay(self, texts: int) -> Replay | None:
        """So many texts, drawn or read, ready to be mixed."""
        given = (self.bench, self._encoder, self.measured, self.folder, None, self.progress)
        return ReplayReader(self._recipe(texts), *given).read().mixture(REPLAY)

    def _train(
        self, run: RunStore, name: str, tokens: int, replay: Replay | None, seconds: float = inf
    ) -> int:
        """Train the adapter, or go on, no longer than so many seconds; the last step."""
        base, arm = self.bench.base, self._recipe(1).arms[name]
        plan = plan_batches(*self._rows, TRAIN, BudgetSection(tokens=[tokens]), 0, replay)
        until = time.monotonic() + seconds - sum(row["seconds"] for row in run.metrics())
        settings, (source, revision) = load_adapter(base.model, self.start), base.source()
        train = partial(
            train_runs, base.model, [(run, RATE)], TRAIN, rule=rule_of(arm, StepRule()), seed=0,
            write_weights=lambda folder: save_adapter(
                base.model, folder, settings, source, revision=revision
            ),
            objective=objective_of(arm), title=run.folder.name, progress=self.progress,
        )  # fmt: skip
        try:
            if train(plan, halt=lambda: time.monotonic() >= until) == ["open"]:
                # The machine became slower: what was learnt until now is kept.
                plan = replace(plan, points=[len(run.metrics())])
                train(plan)
        finally:
            detach(base.model)
        return plan.points[-1]
