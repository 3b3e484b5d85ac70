"""Movement of hidden states, against HSIC's double loop, scipy's Procrustes and dense updates."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from laura.analysis.movement import Moments, measure_movement
from laura.engine.engine import Engine
from laura.engine.requests import TokenDocument
from laura.models.adapters import attach
from laura.models.lora import LoraSettings, lora_layers, route
from laura.results.errors import ModelError
from tests.engine.test_engine import documents_of

CPU = torch.device("cpu")


def likeness(x_NW: Tensor, y_NW: Tensor, parts: int = 3) -> dict[str, float]:
    moments = Moments(x_NW.shape[1], CPU)
    for x, y in zip(x_NW.tensor_split(parts), y_NW.tensor_split(parts), strict=True):
        moments.add(x, y)
    return moments.likeness("states")


def cka_by_hsic(x_NW: Tensor, y_NW: Tensor) -> float:
    """Kornblith et al. 2019, equation 3, with linear kernels, in plain loops over tokens."""
    n = len(x_NW)

    def hsic(one: Tensor, other: Tensor) -> float:
        kernels = []
        for states in (one.double(), other.double()):
            kernel = np.array([[float(states[i] @ states[j]) for j in range(n)] for i in range(n)])
            kernels.append(kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean())
        return sum(kernels[0][i, j] * kernels[1][i, j] for i in range(n) for j in range(n))

    return hsic(x_NW, y_NW) / (hsic(x_NW, x_NW) * hsic(y_NW, y_NW)) ** 0.5


def procrustes_by_scipy(x_NW: Tensor, y_NW: Tensor) -> float:
    sides = [s.double().numpy() - s.double().numpy().mean(0) for s in (x_NW, y_NW)]
    sides = [side / np.linalg.norm(side) for side in sides]
    turn, _ = orthogonal_procrustes(sides[1], sides[0])
    return float(np.linalg.norm(sides[0] - sides[1] @ turn) ** 2)


def drawn(seed: int, tokens: int = 40, width: int = 12, mean: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width, generator=generator) + mean


@pytest.mark.parametrize("tokens", [7, 40])
def test_cka_and_procrustes_are_those_of_naive_references(tokens: int) -> None:
    x = drawn(0, tokens)
    for y in (x + 0.3 * drawn(1, tokens, mean=0.0), drawn(2, tokens, mean=-1.0)):
        found = likeness(x, y)
        assert found["cka"] == pytest.approx(cka_by_hsic(x, y), rel=1e-9)
        assert found["procrustes"] == pytest.approx(procrustes_by_scipy(x, y), rel=1e-9)


def test_rotation_shift_and_scale_change_neither_and_equal_states_are_exact() -> None:
    x, y = drawn(0), drawn(0) + 0.5 * drawn(1)
    turn = torch.linalg.qr(drawn(3, 12)).Q
    plain = likeness(x, y)
    for other in (y @ turn, y + 7, 4 * y):
        assert likeness(x, other) == pytest.approx(plain, rel=1e-5)
    for same in (x, drawn(4, 700, 577, 50.0)):
        assert likeness(same, same.clone()) == {"cka": 1.0, "procrustes": 0.0}
    turned = likeness(x, x @ turn)
    assert turned["cka"] == pytest.approx(1) and turned["procrustes"] < 1e-6
    with pytest.raises(ModelError, match="states are not finite, or alike"):
        likeness(x, y * float("nan"))
    with pytest.raises(ModelError, match="states are not finite, or alike"):
        likeness(x, torch.ones_like(x))


def states_of(model: Any, documents: list[TokenDocument]) -> list[Tensor]:
    """After each layer, where a supervised token that is not among the first two is predicted."""
    found: list[list[Tensor]] = [[] for _ in model.model.layers]
    for document in documents:
        taken: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _, __, out, t=taken: t.append(out[0]))
            for layer in model.model.layers
        ]
        with torch.no_grad():
            model(torch.tensor([document.token_ids]))
        for hook in hooks:
            hook.remove()
        marks = document.supervised
        places = [i for i in range(1, len(marks) - 1) if marks[i + 1]]
        for own, states in zip(found, taken, strict=True):
            own.append(states[places])
    return [torch.cat(own) for own in found]


def inputs_of_map(model: Any, module: Any, documents: list[TokenDocument]) -> Tensor:
    found: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0]))
    with torch.no_grad():
        for document in documents:
            model(torch.tensor([document.token_ids]))
    hook.remove()
    places = [
        [i for i in range(1, len(d.supervised) - 1) if d.supervised[i + 1]] for d in documents
    ]
    return torch.cat([h[p] for h, p in zip(found, places, strict=True)])


def check(found: dict[str, Any], base: Any, tuned: Any, documents: list[TokenDocument]) -> None:
    before, after = states_of(base, documents), states_of(tuned, documents)
    assert found["tokens"] == len(before[0])
    for row, x, y in zip(found["layers"], before, after, strict=True):
        assert row["cka"] == pytest.approx(likeness(x, y)["cka"], abs=1e-6)
        assert row["procrustes"] == pytest.approx(procrustes_by_scipy(x, y), abs=1e-6)
    for number, (old, new) in enumerate(zip(base.model.layers, tuned.model.layers, strict=True)):
        for place in ("self_attn.k_proj", "mlp.down_proj"):
            module = old.get_submodule(place)
            h = inputs_of_map(base, module, documents)
            weight = module.weight.detach()
            delta = new.get_submodule(place).weight.detach() - weight
            expected = float((h @ delta.T).square().sum() / (h @ weight.T).square().sum())
            csd = found["layers"][number]["csd"]
            assert csd[place.split(".")[1]] == pytest.approx(expected, rel=1e-4)
            assert len(csd) == 7


def test_a_model_that_was_trained_whole(tiny_model: Any, tiny_tokenizer: Any) -> None:
    documents = documents_of(tiny_tokenizer)
    tuned = copy.deepcopy(tiny_model)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    engine = Engine(tuned, tiny_tokenizer, row_tokens=60)
    found = measure_movement(engine, tiny_model, documents, CPU)
    check(found, tiny_model, tuned, documents)


def test_an_adapter_and_one_that_was_not_trained(tiny_model: Any, tiny_tokenizer: Any) -> None:
    documents, model = documents_of(tiny_tokenizer), copy.deepcopy(tiny_model)
    attach(model, LoraSettings(rank=4, alpha=8), seed=0)
    engine = Engine(model, tiny_tokenizer)
    found = measure_movement(engine, lambda: route(model, None), documents, CPU)
    assert {(row["cka"], row["procrustes"]) for row in found["layers"]} == {(1.0, 0.0)}
    assert {share for row in found["layers"] for share in row["csd"].values()} == {0.0}
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.B += 0.05
    found = measure_movement(engine, lambda: route(model, None), documents, CPU)
    tuned = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            tuned.get_submodule(name).weight += layer.update()
    check(found, tiny_model, tuned, documents)
