"""`laura merge`: an adapter folded into its base, with a check that it is the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from laura.models.adapters import load_adapter, merge_check
from laura.models.load import load_base, quiet_transformers
from laura.models.lora import detach, lora_layers
from laura.results.errors import StoreError
from laura.results.progress import SILENT, Progress
from laura.results.store import write_folder

PROBE = "The quick brown fox jumps over the lazy dog. 12 + 30 = 42."


def merge_adapter(
    base: str,
    adapter: Path,
    out: Path,
    *,
    device: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write base plus adapter as one plain model folder.

    Returns:
        `merged`, `unmerged` and `update`: largest differences of logits on a
        probe text (see `merge_check`), and `folder`.

    Raises:
        StoreError: `out` exists already.
    """
    if out.exists():
        raise StoreError(f"{out} exists; choose a folder that does not")
    loaded = load_base(base, device=device, progress=progress)
    load_adapter(loaded.model, adapter)
    ids = loaded.tokenizer(PROBE, return_tensors="pt")["input_ids"].to(loaded.model.device)
    differences = merge_check(loaded.model, ids)
    with torch.no_grad():
        for layer in lora_layers(loaded.model).values():
            layer.base.weight.copy_(layer.tuned())
    detach(loaded.model)

    def fill(folder: Path) -> None:
        with quiet_transformers():
            loaded.model.save_pretrained(folder)
            loaded.tokenizer.save_pretrained(folder)

    write_folder(out, fill, {"base": loaded.name, "fingerprint": loaded.fingerprint})
    return {**differences, "folder": str(out)}
