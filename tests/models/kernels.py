"""Counts what a device is asked to do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

# They make tensors that look at what is there, or find memory: nothing is launched.
FREE = {
    "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand",
    "new_empty", "new_empty_strided", "permute", "select", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "unfold",
}  # fmt: skip


def allow_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let our parts run on the meta device, of which autocast knows nothing."""
    for room in ("lean", "lora"):
        monkeypatch.setattr(f"laura.models.{room}.arithmetic", lambda x: x.dtype)


class Kernels(TorchDispatchMode):
    """Within the block, counts the operations that launch a kernel on an accelerator.

    Attributes:
        counts: How often each was asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All of them."""
        return self.counts.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func.overloadpacket)
        if name.rsplit(".", 1)[-1] not in FREE:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))
