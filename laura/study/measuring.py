"""Who answers the tasks of a study and of `laura evaluate`: a line in ENGINES for each engine.

Losses and divergences of a study are measured by Laura's own engine always: a divergence needs
whole distributions, which vLLM does not give, and a loss is a single pass.

One vLLM serves a study's process from the first benchmark on to its end. It answers by the base's
weights, by those of a full checkpoint that it reads in their place, or through an adapter. On a
GPU it and this process take turns: it sleeps (its weights in host memory, no keys and values)
while here is trained or measured, and the base waits in host memory while it answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.engine.engine import Engine, Reference
from laura.engine.requests import MeasuringEngine
from laura.engine.vllm import VllmEngine
from laura.engine.vllm_python import vllm_version
from laura.evals.tasks import TASKS
from laura.models.adapter_files import CONFIG
from laura.models.adapters import load_adapters
from laura.models.device import pick_device, resolve_precision
from laura.models.encoding import Encoder
from laura.models.load import fingerprint, load_base, resolve_model
from laura.recipe.sections import LoraArm, MeasureSection, Recipe
from laura.results.progress import SILENT, Progress
from laura.study.workbench import Workbench

OURS = "laura"
Opened = AbstractContextManager[tuple[MeasuringEngine, str]]


@dataclass(frozen=True)
class Asked:
    """A model of a study, ready to be measured.

    Attributes:
        engine: What answers.
        reference: The base, for divergences; None where the model is the base.
        adapter: By which name of the engine's it answers; None for the model itself.
    """

    engine: MeasuringEngine
    reference: Reference | None = None
    adapter: str | None = None


class LateEngine:
    """An engine that starts, or wakes, at the first request: what stands is not asked again.

    Args:
        engines: Of the study.
        start: Gives the engine.
    """

    def __init__(self, engines: StudyEngines, start: Callable[[], VllmEngine]) -> None:
        base, self.progress = engines.bench.base, engines.progress
        self.tokenizer, self.encoder = base.tokenizer, Encoder(base.tokenizer, base.model.config)
        self.precision, self.version = engines.precision, engines.version
        self._start = functools.cache(start)

    def __getattr__(self, name: str) -> Any:
        """What only the engine itself has."""
        engine = self._start()
        engine.progress = self.progress
        return getattr(engine, name)


class StudyEngines:
    """The engines of a study's process; to be closed.

    Args:
        bench: The base.
        recipe: The study's.
        progress: Where to report.

    Attributes:
        precision: Number format in which is measured.
        version: Of the engine of benchmarks, where it is not Laura's own.
    """

    def __init__(self, bench: Workbench, recipe: Recipe, progress: Progress = SILENT) -> None:
        self.bench, self.recipe, self.progress = bench, recipe, progress
        self._device, section = pick_device(bench.device_name), recipe.measure
        self.precision = resolve_precision(section.precision, self._device)
        self.version = ENGINES[section.engine].version()
        self._vllm: VllmEngine | None = None

    def close(self) -> None:
        """End vLLM; it starts again when it is wanted."""
        if self._vllm is not None:
            self._vllm.close()
            self._vllm = None

    def dealt(self, tasks: Sequence[str]) -> dict[str, list[str]]:
        """Tasks and extras by the engine that answers them, in the order given."""
        found: dict[str, list[str]] = {}
        for name in tasks:
            ours = name in TASKS and TASKS[name].kind in ("loss", "divergence")
            found.setdefault(OURS if ours else self.recipe.measure.engine, []).append(name)
        return found

    def opened(self, engine: str, checkpoint: Path | None) -> AbstractContextManager[Asked]:
        """A model as an engine answers by it.

        Args:
            engine: Name in ENGINES.
            checkpoint: A run's; None for the base.

        Raises:
            CheckpointError: the checkpoint does not match its checksums.
            LauraError: the engine cannot take it.
        """
        return ENGINES[engine].checkpoint(self, checkpoint)

    @contextmanager
    def awake(self, folder: Path, adapter: str | None) -> Iterator[VllmEngine]:
        """vLLM with a model's weights.

        Args:
            folder: Of a whole model or an adapter.
            adapter: By which name it answers through the adapter; None for a whole model.
        """
        with self.bench.aside():
            try:
                engine = self._holding(folder if adapter is None else self.bench.base.folder)
                if adapter is not None:
                    engine.add_adapter(adapter, folder)
                yield engine
                if adapter is not None:
                    engine.remove_adapter(adapter)
                engine.sleep()
            except BaseException:
                self.close()
                raise

    def _holding(self, folder: Path) -> VllmEngine:
        """vLLM awake with a whole model's weights; another one where they cannot be exchanged."""
        if self._vllm is not None:
            self._vllm.wake()
            if self._vllm.hold(folder):
                return self._vllm
            self.close()
        arms = [arm for arm in self.recipe.arms.values() if isinstance(arm, LoraArm)]
        self._vllm = VllmEngine(
            folder,
            self.precision,
            progress=self.progress,
            rank=max((arm.file_rank for arm in arms), default=0),
            shared=self._device,
            tokenizer=self.bench.base.tokenizer,
        )
        return self._vllm


@contextmanager
def _checkpoint_here(engines: StudyEngines, checkpoint: Path | None) -> Iterator[Asked]:
    bench = engines.bench
    with bench.tuned(checkpoint) as (model, reference):
        tokenizer, progress = bench.base.tokenizer, engines.progress
        engine = Engine(model, tokenizer, engines.precision, progress=progress)
        yield Asked(engine, reference)


@contextmanager
def _checkpoint_in_vllm(engines: StudyEngines, checkpoint: Path | None) -> Iterator[Asked]:
    with ExitStack() as stack:
        folder = stack.enter_context(engines.bench.weights(checkpoint))
        adapter = str(folder) if (folder / CONFIG).is_file() else None
        yield Asked(
            LateEngine(engines, lambda: stack.enter_context(engines.awake(folder, adapter))),
            adapter=adapter,
        )


@contextmanager
def _models_here(
    model: str,
    adapters: Mapping[str, Path],
    section: MeasureSection,
    device: str | None,
    progress: Progress,
) -> Iterator[tuple[MeasuringEngine, str]]:
    base = load_base(model, device=device, progress=progress)
    if adapters:
        load_adapters(base.model, list(adapters.values()))
    slots = {name: slot for slot, name in enumerate(adapters)}
    precision = resolve_precision(section.precision, base.model.device)
    engine = Engine(base.model, base.tokenizer, precision, progress=progress, adapters=slots)
    yield engine, base.fingerprint


@contextmanager
def _models_in_vllm(
    model: str,
    adapters: Mapping[str, Path],
    section: MeasureSection,
    device: str | None,
    progress: Progress,
) -> Iterator[tuple[MeasuringEngine, str]]:
    precision = resolve_precision(section.precision, pick_device(device))
    folder = resolve_model(model, progress=progress)
    with VllmEngine(folder, precision, adapters, progress=progress) as engine:
        yield engine, fingerprint(folder)


@dataclass(frozen=True)
class EngineEntry:
    """How an engine is opened.

    Attributes:
        checkpoint: On a checkpoint of a study, or its base.
        models: On a model and adapters by name, with the model's fingerprint.
        version: Of what is installed, where it is not part of Laura.
    """

    checkpoint: Callable[[StudyEngines, Path | None], AbstractContextManager[Asked]]
    models: Callable[..., Opened]
    version: Callable[[], str] = str


ENGINES = {
    OURS: EngineEntry(_checkpoint_here, _models_here),
    "vllm": EngineEntry(_checkpoint_in_vllm, _models_in_vllm, vllm_version),
}
