"""A thousand adapters of rank 16 on disk, served through sixteen slots."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from laura.models.adapters import PREFIX
from tests.conftest import make_tiny_tokenizer
from tests.engine.alone import ATTENTION, MLP, next_logits, tiny
from tests.serve.real_server import RealServer, serving

pytestmark = pytest.mark.slow

COUNT, SLOTS, RANK, LIMIT = 1000, 16, 16, 6
TEXT = "the cat sat on a mat"
END = 2  # the tiny base's end token
MODULES = [f"model.layers.{layer}.{kind}" for layer in (0, 1) for kind in (*ATTENTION, *MLP)]
# Below this margin (nats), fp32 may round one way in a batch and another way alone.
TIE = 1e-3
# From the first hundred adapters to all of them: half of the 112 MiB that they would take if they
# stayed. The heap keeps what the largest passes took, and chance brings those early or late.
MOST_GROWTH_BYTES = 56 * 2**20
# And by three hundred more, after that.
MOST_LATE_BYTES = 8 * 2**20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thousand") / "tiny"
    tiny().save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path) -> Path:
    """A thousand different adapters, 128 KiB each."""
    model, folder = tiny(), base.parent / "adapters"
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny",
        "r": RANK, "lora_alpha": 2 * RANK, "target_modules": MODULES, "bias": "none",
    }  # fmt: skip
    for number in range(COUNT):
        source, tensors = torch.Generator().manual_seed(number), {}
        for name in MODULES:
            linear = model.get_submodule(name)
            for letter, shape in (("A", (RANK, linear.in_features)),
                                  ("B", (linear.out_features, RANK))):  # fmt: skip
                drawn = torch.randn(shape, generator=source) * 0.1
                tensors[f"{PREFIX}{name}.lora_{letter}.weight"] = drawn
        place = folder / f"a{number:03}"
        place.mkdir(parents=True)
        save_file(tensors, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def right_answers(adapters: Path) -> dict[str, str]:
    """Each adapter's greedy answer with its update added to the weights, without a cache.

    Left out are those whose two most likely tokens are nearly alike somewhere.
    """
    model, tokenizer = tiny(), make_tiny_tokenizer()
    own = {name: model.get_submodule(name).weight.detach().clone() for name in MODULES}
    found = {}
    for folder in sorted(adapters.iterdir()):
        tensors = load_file(folder / "adapter_model.safetensors")
        for name in MODULES:
            a, b = (tensors[f"{PREFIX}{name}.lora_{letter}.weight"] for letter in "AB")
            with torch.no_grad():
                model.get_submodule(name).weight.copy_(own[name] + 2 * b @ a)
        tokens, margin = tokenizer.encode(TEXT), 1.0
        start = len(tokens)
        while len(tokens) < start + LIMIT and tokens[-1] != END:
            best = next_logits(model, tokens).topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
        if margin > TIE:
            found[folder.name] = tokenizer.decode(tokens[start:], skip_special_tokens=True)
    return found


def asked(client: httpx.Client, name: str) -> str:
    body = {"model": name, "prompt": TEXT, "max_tokens": LIMIT, "temperature": 0}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def state(client: httpx.Client) -> Any:
    return client.get("/admin/state").raise_for_status().json()


def own_bytes(adapters: Path) -> int:
    tensors = load_file(adapters / "a000" / "adapter_model.safetensors").values()
    return sum(one.numel() * 4 for one in tensors)


def test_a_thousand_adapters_through_sixteen_slots(base: Path, adapters: Path) -> None:
    right = right_answers(adapters)
    assert len(right) > 0.95 * COUNT and len(set(right.values())) > 0.9 * COUNT
    words = (str(base), "--adapters", str(adapters), "--slots", str(SLOTS), "--precision", "fp32")
    with (
        serving(*words, "--device", "cpu", "--unrecorded", "allow") as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        assert len(client.get("/v1/models").json()["data"]) == COUNT + 1
        through_slots(server, client, right)
        each_in_turn(client, right)
        held = state(client)["memory_bytes"]["adapters"]
        assert SLOTS * own_bytes(adapters) <= held <= 1.2 * SLOTS * own_bytes(adapters)
    assert server.child.returncode == 0


def through_slots(server: RealServer, client: httpx.Client, right: dict[str, str]) -> None:
    """All of them, from sixteen clients at once; memory grows with none of them."""
    names = list(right)
    random.Random(0).shuffle(names)
    sizes = []
    with ThreadPoolExecutor(SLOTS) as crowd:
        for part in (names[:100], names[100:], names[:300]):
            for name, text in zip(part, crowd.map(lambda n: asked(client, n), part), strict=True):
                assert text == right[name], name
            sizes.append(server.resident_bytes())
    print(json.dumps({"adapters": len(names), "MiB": [size >> 20 for size in sizes]}))
    assert sizes[-1] - sizes[0] < MOST_GROWTH_BYTES, sizes
    assert sizes[-1] - sizes[1] < MOST_LATE_BYTES, sizes


def each_in_turn(client: httpx.Client, right: dict[str, str]) -> None:
    """One after another, each in the place that another has just left."""
    before = {slot["adapter"] for slot in state(client)["slots"]}
    for name in [name for name in right if name not in before][:60]:
        assert asked(client, name) == right[name]
        held = {slot["adapter"] for slot in state(client)["slots"]}
        assert name in held and len(held) == SLOTS and len(before - held) == 1
        before = held
    assert asked(client, "tiny")  # the base is there beside them all
