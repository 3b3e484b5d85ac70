"""The base in memory, and the ways it is changed and put back.

One branch in all of Laura asks for the method: here, before training, adapters
are attached or everything is unfrozen, and weights are written accordingly.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from laura.models.adapters import load_adapter, save_adapter
from laura.models.external import weights_folder
from laura.models.load import Base, load_base, quiet_transformers
from laura.models.lora import LoraSettings, attach, detach, route
from laura.progress import SILENT, Progress
from laura.recipe import Arm, BaseSection, LoraArm
from laura.store import check_folder

Reference = Callable[[], AbstractContextManager[object]] | Any


@dataclass(frozen=True)
class Adapted:
    """A model ready to be trained.

    Attributes:
        model: What is trained requires a gradient, nothing else does.
        write_weights: Writes the current weights into a folder.
        trainable_parameters: How many numbers are trained.
    """

    model: Any
    write_weights: Callable[[Path], None]
    trainable_parameters: int


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
        """The base, loaded when first needed and again after full finetuning."""
        if self._base is None:
            self._base = load_base(
                self.section.model,
                revision=self.section.revision,
                dtype=self.section.dtype,
                device=self.device_name,
                progress=self.progress,
            )
            self._base.model.requires_grad_(False)
        return self._base

    @contextmanager
    def adapted(self, arm: Arm, seed: int) -> Iterator[Adapted]:
        """The base made ready to train one arm; untouched again afterwards."""
        base = self.base
        if isinstance(arm, LoraArm):
            settings = lora_settings(arm)
            attach(base.model, settings, seed)
            write = _adapter_writer(base, settings)
        else:
            base.model.requires_grad_(True)
            write = _checkpoint_writer(base)
        try:
            yield Adapted(base.model, write, _trainable(base.model))
        finally:
            if isinstance(arm, LoraArm):
                detach(base.model)
                base.model.requires_grad_(False)
            else:
                # The weights have changed: drop them; the next use loads the base again.
                self._base = None
                del base
                gc.collect()

    @contextmanager
    def tuned(self, checkpoint: Path) -> Iterator[tuple[Any, Reference]]:
        """A checkpoint ready to be measured, and the base to compare it with.

        Yields:
            The model, and a reference for divergences: a context in which the
            model is the base (adapters), or the base itself (full).

        Raises:
            CheckpointError: the checkpoint does not match its checksums.
        """
        check_folder(checkpoint)
        checkpoint = weights_folder(checkpoint, self.progress)
        model = self.base.model
        if (checkpoint / "adapter_config.json").is_file():
            load_adapter(model, checkpoint)
            try:
                yield model, lambda: route(model, None)
            finally:
                detach(model)
                model.requires_grad_(False)
            return
        tuned = load_base(str(checkpoint), dtype=self.section.dtype, device=self.device_name)
        tuned.model.requires_grad_(False)
        try:
            yield tuned.model, model
        finally:
            del tuned
            gc.collect()

    def count_trainable(self, arm: Arm) -> int:
        """How many numbers an arm trains; nothing is changed."""
        base = self.base
        if not isinstance(arm, LoraArm):
            return sum(p.numel() for p in base.model.parameters())
        attach(base.model, lora_settings(arm), seed=0)
        try:
            return _trainable(base.model)
        finally:
            detach(base.model)
            base.model.requires_grad_(False)


def lora_settings(arm: LoraArm) -> LoraSettings:
    """The adapter settings of an arm."""
    targets = arm.targets if isinstance(arm.targets, str) else tuple(arm.targets)
    return LoraSettings(
        rank=arm.rank,
        alpha=arm.alpha_value,
        targets=targets,
        dropout=arm.dropout,
        rslora=arm.rslora,
    )


def _adapter_writer(base: Base, settings: LoraSettings) -> Callable[[Path], None]:
    return lambda folder: save_adapter(base.model, folder, settings, base.name)


def _checkpoint_writer(base: Base) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        # What is written is a plain transformers folder, without our attention's name.
        with quiet_transformers():
            base.model.save_pretrained(folder)
            base.tokenizer.save_pretrained(folder)

    return write


def _trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
