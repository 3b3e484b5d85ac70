"""The families of models that Laura knows: where the linear maps of their layers lie.

A family is a line in `FAMILIES`, by the `model_type` of its config.json. A kind that has none is
taken for one whose layers are named as Llama's, and refused by `load.py` where they are not. No
torch, so that a plan can ask too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFamily:
    """Names within a decoder layer, in the order in which a pass reads them.

    Attributes:
        qkv: Maps to queries, keys and values; one where the family joins them.
        output: The map behind attention.
        gate_up: Maps into the hidden width of the MLP.
        down: The map out of it.
        experts: Where the MLP is one of many, the config's key of how many; else None. They lie
            stacked in `EXPERTS`, gate and up joined, and the layer has no other MLP.
        gated: Whether the MLP has a gate beside the map up.
        stem: Name of the decoder.
    """

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    experts: str | None = None
    gated: bool = True
    stem: str = "model"

    @property
    def attention(self) -> str:
        """Name of the attention block."""
        return self.output.split(".")[0]

    @property
    def joined(self) -> tuple[tuple[str, ...], ...]:
        """The linear maps, those together that read the same input; experts' are none."""
        attention = self.qkv, (self.output,)
        return attention if self.experts else (*attention, self.gate_up, (self.down,))

    @property
    def maps(self) -> tuple[str, ...]:
        """The linear maps one by one."""
        return tuple(name for names in self.joined for name in names)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Last parts of the names of the maps that `attention`, `mlp` and `all` mean."""
        unit = (*self.gate_up, self.down) if self.experts is None else EXPERT_MAPS
        parts = {"attention": (*self.qkv, self.output), "mlp": unit}
        found = {
            group: tuple(name.rsplit(".", 1)[-1] for name in names)
            for group, names in parts.items()
        }
        return {**found, "all": found["attention"] + found["mlp"]}


EXPERTS, EXPERT_MAPS = "mlp.experts", ("gate_up_proj", "down_proj")
LLAMA = ModelFamily()
FAMILIES: dict[str, ModelFamily] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text"), LLAMA
    ),
    "phi3": ModelFamily(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)),
    "gpt_neox": ModelFamily(
        qkv=("attention.query_key_value",),
        output="attention.dense",
        gate_up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        gated=False,
        stem="gpt_neox",
    ),
    "mixtral": ModelFamily(experts="num_local_experts"),
    "qwen3_moe": ModelFamily(experts="num_experts"),
}


def family_of(kind: str) -> ModelFamily:
    """The family of a config's `model_type`."""
    return FAMILIES.get(kind, LLAMA)


def expert_of(name: str) -> tuple[str, int, str] | None:
    """Module, number and map of a map's full name; None where it is no expert's."""
    parts = name.rsplit(".", 2)
    if len(parts) == 3 and parts[0].endswith("." + EXPERTS):
        return parts[0], int(parts[1]), parts[2]
    return None
