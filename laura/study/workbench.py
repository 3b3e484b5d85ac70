"""The base in memory, and the ways it is changed and put back.

One branch in all of Laura asks for the method: here, before training, adapters
are attached or everything is unfrozen, and weights are written accordingly.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from laura.analysis.weights import StoredModel
from laura.models.adapter_files import CONFIG, read_settings, trained_whole
from laura.models.adapters import attach, fold, load_adapter, merge_check, refill, save_adapter
from laura.models.after import CHANGES
from laura.models.device import empty_cache
from laura.models.external import weights_folder
from laura.models.gguf_export import find_converter, write_gguf
from laura.models.layers import chosen_layers, dropping
from laura.models.load import DTYPES, Base, load_base, quiet_transformers, resolve_model
from laura.models.lora import LoraSettings, detach, rate_ratios, route
from laura.models.lora_variants import unstarted
from laura.recipe.sections import AdapterArm, Arm, BaseSection, FullArm, LoraArm, OftArm
from laura.results.errors import AdapterError, StoreError
from laura.results.progress import SILENT, Progress
from laura.results.schema import RECORD_FILE, read_record
from laura.results.store import check_folder, write_folder
from laura.training.optimisers import StepRule
from laura.training.remedies import rule_of

Reference = Callable[[], AbstractContextManager[object]] | Any


@dataclass(frozen=True)
class Adapted:
    """A model ready to be trained.

    Attributes:
        model: What is trained requires a gradient, nothing else does.
        write_weights: Writes the current weights into a folder.
        trainable_parameters: How many numbers are trained.
        rule: How they are stepped.
        begin: Puts in the weights that training begins with; before, they are the base's.
    """

    model: Any
    write_weights: Callable[[Path], None]
    trainable_parameters: int
    rule: StepRule
    begin: Callable[[], None]


class Workbench:
    """Holds one base and lends it out, adapted for training or tuned for measuring.

    Args:
        section: The recipe's `base`.
        device: Device name, or None for the best there is.
        progress: Where loading is reported.
    """

    def __init__(
        self, section: BaseSection, device: str | None = None, progress: Progress = SILENT
    ) -> None:
        self.section, self.device_name, self.progress = section, device, progress
        self._base: Base | None = None

    @property
    def base(self) -> Base:
        """The base as it is measured, loaded when first needed and again after full finetuning."""
        if self._base is None:
            self._base = self._load(self.section.dtype)
        return self._base

    def _load(self, dtype: str) -> Base:
        base = load_base(
            self.section.model,
            revision=self.section.revision,
            dtype=dtype,
            quantization=self.section.quantization,
            device=self.device_name,
            progress=self.progress,
        )
        base.model.requires_grad_(False)
        return base

    def _drop(self) -> None:
        """Let go of the base; the next use loads it again."""
        self._base = None
        gc.collect()

    @property
    def stored(self) -> StoredModel:
        """The base's weights on the disk, as they are held."""
        section = self.section
        folder = resolve_model(section.model, section.revision, self.progress)
        return StoredModel(folder, DTYPES[section.dtype], section.quantization is not None)

    def step_aside(self) -> None:
        """Leave the device to the processes that do the work now; the base waits in host memory."""
        device = self.base.model.device
        if device.type != "cpu":
            self.base.model.to("cpu")
            empty_cache(device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The device is another process's within the block."""
        device = self.base.model.device
        self.step_aside()
        yield
        self.base.model.to(device)

    @contextmanager
    def adapted(
        self,
        arm: Arm,
        seed: int,
        devices: int = 1,
        moments: Mapping[str, torch.Tensor] | None = None,
        start: Path | None = None,
    ) -> Iterator[Adapted]:
        """The base made ready to train one arm; untouched again afterwards.

        Args:
            arm: The arm.
            seed: Decides how an adapter starts.
            devices: Over how many the model will be spread while it is trained.
            moments: Of the base's activations, where the arm starts from them.
            start: Checkpoint of such an arm that training goes on from; None for the base.

        Raises:
            CheckpointError: the checkpoint does not match its checksums.
        """
        if start is not None:
            check_folder(start)
        dtype = self.section.dtype_under(arm)
        if dtype == self.section.dtype:
            base = self.base
        else:
            self._drop()  # there is room for one
            base = self._load(dtype)
        if isinstance(arm, AdapterArm):
            settings = lora_settings(arm)
            attach(base.model, settings, seed, moments=moments)
            write = _adapter_writer(base, settings)
            rule = _adapter_rule(base.model, arm)
        else:
            _unfreeze(base.model, arm)
            write = _checkpoint_writer(base)
            rule = StepRule(arm.weight_decay, toward_base=arm.weight_decay_toward == "base")
        try:
            with dropping(base.model, arm.attention_dropout, arm.residual_dropout):
                begin = partial(_begin, base.model, start)
                yield Adapted(base.model, write, _trainable(base.model), rule_of(arm, rule), begin)
        finally:
            if isinstance(arm, AdapterArm) and devices == 1:
                detach(base.model)
                base.model.requires_grad_(False)
            else:
                del base  # changed, or spread out
                self._drop()

    @contextmanager
    def weights(self, checkpoint: Path | None) -> Iterator[Path]:
        """Where a checkpoint's weights lie, an adapter's or a whole model's; None for the base's.

        An adapter that cannot stand beside its base is a whole model, for as long as the block.

        Raises:
            CheckpointError: the checkpoint does not match its checksums.
            AdapterError: it is such an adapter, on a quantised base.
        """
        if checkpoint is None:
            yield self.base.folder
            return
        check_folder(checkpoint)
        folder = weights_folder(checkpoint, self.progress)
        if not (folder / CONFIG).is_file() or not trained_whole(folder):
            yield folder
            return
        if self.section.quantization is not None:
            raise AdapterError(
                f"{folder} holds {trained_whole(folder)[0]}, so it is measured merged, and the "
                f"base is in {self.section.quantization}; leave base.quantization out"
            )
        with merged(str(self.base.folder), folder) as (model, _):
            yield model

    @contextmanager
    def tuned(self, checkpoint: Path | None) -> Iterator[tuple[Any, Reference | None]]:
        """A checkpoint ready to be measured, and the base to compare it with.

        Args:
            checkpoint: Of a run; None for the base itself.

        Yields:
            The model, and a reference for divergences: a context in which the
            model is the base (adapters), or the base itself (full); None for the base.

        Raises:
            CheckpointError: the checkpoint does not match its checksums.
        """
        if checkpoint is None:
            yield self.base.model, None
            return
        model = self.base.model
        with self.weights(checkpoint) as folder:
            if (folder / CONFIG).is_file():
                load_adapter(model, folder)
                try:
                    yield model, lambda: route(model, None)
                finally:
                    detach(model)
                    model.requires_grad_(False)
                return
            tuned = load_base(str(folder), dtype=self.section.dtype, device=self.device_name)
            tuned.model.requires_grad_(False)
            try:
                yield tuned.model, model
            finally:
                del tuned
                gc.collect()

    def change(
        self, checkpoint: Path, target: Path, change: str, factor: float, facts: dict[str, Any]
    ) -> None:
        """Write a checkpoint as it is after a change (`laura.models.after`).

        Args:
            checkpoint: Of a run.
            target: Where the changed one goes.
            change: One of `laura.recipe.remedies.AFTER`.
            factor: How much is left.
            facts: For the manifest.
        """
        with self.weights(checkpoint) as folder, self.tuned(checkpoint) as (model, _):
            CHANGES[change](model, self.base.model, factor)
            write = _checkpoint_writer(replace(self.base, model=model))
            if (folder / CONFIG).is_file():
                write = _adapter_writer(self.base, read_settings(folder))
            write_folder(target, write, {**facts, "change": change, "factor": factor})

    def count_trainable(self, arm: Arm) -> int:
        """How many numbers an arm trains; nothing is changed.

        Raises:
            AdapterError, ModelError: the arm does not fit the base.
        """
        model = self.base.model
        if isinstance(arm, AdapterArm):
            # However A and B start, they are equally many; decompositions take long.
            plain = replace(unstarted(lora_settings(arm)), protect=0)
            attach(model, plain, seed=0)
        else:
            _unfreeze(model, arm)
        try:
            with dropping(model, arm.attention_dropout, arm.residual_dropout):
                return _trainable(model)
        finally:
            detach(model)
            model.requires_grad_(False)


def lora_settings(arm: AdapterArm) -> LoraSettings:
    """The adapter settings of an arm."""
    targets = arm.targets if isinstance(arm.targets, str) else tuple(arm.targets)
    layers = None if arm.layers is None else tuple(arm.layers)
    if isinstance(arm, OftArm):
        return LoraSettings(
            rank=1, alpha=1.0, targets=targets, layers=layers, block_size=arm.block_size
        )
    assert isinstance(arm, LoraArm)
    return LoraSettings(
        rank=arm.rank,
        alpha=arm.alpha_value,
        targets=targets,
        dropout=arm.dropout,
        rslora=arm.rslora,
        layers=layers,
        pissa=arm.init == "pissa",
        milora=arm.init == "milora",
        lora_null=arm.init == "lora_null",
        corda=arm.init == "corda",
        protect=arm.protect,
        dora=arm.dora,
    )


def _adapter_rule(model: torch.nn.Module, arm: AdapterArm) -> StepRule:
    # A length pulled to zero would silence its output; decay is meant for A and B.
    lengths = [name for name, p in model.named_parameters() if p.requires_grad and p.dim() == 1]
    ratios = rate_ratios(model, arm.lora_plus_ratio) if isinstance(arm, LoraArm) else {}
    return StepRule(arm.weight_decay, rate_ratios=ratios, undecayed=lengths)


def _unfreeze(model: torch.nn.Module, arm: FullArm) -> None:
    parts = [model] if arm.layers is None else chosen_layers(model, arm.layers)
    for part in parts:
        part.requires_grad_(True)


def _adapter_writer(base: Base, settings: LoraSettings) -> Callable[[Path], None]:
    name, revision = base.source()
    return lambda folder: save_adapter(base.model, folder, settings, name, revision=revision)


def _checkpoint_writer(base: Base) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        # What is written is a plain transformers folder, without our attention's name.
        with quiet_transformers():
            base.model.save_pretrained(folder)
            base.tokenizer.save_pretrained(folder)

    return write


def _begin(model: Any, start: Path | None) -> None:
    if start is None:
        return
    if (start / CONFIG).is_file():
        refill(model, start)
        return
    before = load_base(str(start), dtype="float32", device="cpu").model
    model.load_state_dict(before.state_dict())


def _trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


PROBE = "The quick brown fox jumps over the lazy dog. 12 + 30 = 42."


def merge_adapter(
    base: str,
    adapter: Path,
    out: Path,
    *,
    converter: Path | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write base plus adapter as one plain model folder, or as a GGUF file.

    Args:
        base: Name, folder, GGUF file or Hub id.
        adapter: Folder of a PEFT adapter on it.
        out: A folder, or a file where it ends in .gguf.
        converter: llama.cpp's, or its folder; None where it is on PATH.
        device: Device name; None for the best there is.
        progress: Where to report.

    Returns:
        `merged`, `unmerged` and `update`: largest differences of logits on a
        probe text (see `merge_check`), and `folder`. Of an adapter that cannot stand
        beside its base `update` alone.

    Raises:
        StoreError: `out` exists already.
        UsageError: a GGUF file is wanted, and there is no converter.
    """
    if out.exists():
        raise StoreError(f"{out} exists; choose a folder that does not")
    if out.suffix.lower() == ".gguf":
        script = find_converter(converter)
        with merged(base, adapter, device, progress) as (folder, answer):
            progress.say(f"{script} writes {out}")
            write_gguf(folder, out, script)
        return {**answer, "folder": str(out)}
    loaded = load_base(base, device=device, progress=progress)
    if (adapter / RECORD_FILE).is_file():
        for warning in read_record(adapter).warnings:
            progress.say(f"{adapter}: {warning}")
    ids = loaded.tokenizer(PROBE, return_tensors="pt")["input_ids"].to(loaded.model.device)
    if trained_whole(adapter):  # there is nothing beside the base to compare with
        before = _logits(loaded.model, ids)
        fold(loaded.model, adapter)
        update = float((_logits(loaded.model, ids) - before).abs().max())
        differences = {"update": update}
    else:
        load_adapter(loaded.model, adapter)
        differences = merge_check(loaded.model, ids)
        detach(loaded.model)
        fold(loaded.model, adapter)
    facts = {"base": loaded.name, "fingerprint": loaded.fingerprint}
    write_folder(out, _checkpoint_writer(loaded), facts)
    return {**differences, "folder": str(out)}


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(ids).logits.float()
    return logits


@contextmanager
def merged(
    base: str, adapter: Path, device: str | None = "cpu", progress: Progress = SILENT
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder with base plus adapter as one plain model, in float32, for the block.

    Yields:
        The folder, and what `merge_adapter` answers.

    Raises:
        LauraError: as `merge_adapter`.
    """
    with tempfile.TemporaryDirectory(prefix="laura-merged.") as place:
        folder = Path(place) / "model"
        yield folder, merge_adapter(base, adapter, folder, device=device, progress=progress)
