"""The base beside the model that is trained from it, for what asks what the base would say.

Of a model with adapters it is the model itself with these off. Of one whose weights are trained
it is a copy, which shares whatever is frozen. Nothing is dropped at random in its passes, and no
random number is drawn.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from laura.models.lora import lora_layers, route


class BaseBeside:
    """What a `losses.Objective` asks; made before the first step.

    Args:
        model: What requires a gradient is trained.

    Attributes:
        model: What the base's passes go through.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        if not lora_layers(model):
            shared = {id(p): p for p in model.parameters() if not p.requires_grad}
            self.model = copy.deepcopy(model, shared).requires_grad_(False)

    @torch.no_grad()
    def hidden(self, inputs: dict[str, Any]) -> Tensor:
        """The base's last hidden states of a packed row, (T, C)."""
        training = self.model.training
        self.model.eval()
        with route(self.model, None):
            states: Tensor = self.model.get_decoder()(**inputs, use_cache=False).last_hidden_state
        self.model.train(training)
        return states[0]
