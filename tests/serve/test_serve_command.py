"""`laura serve` as a command: the micro base with real adapters, asked as clients would."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from laura.models.registry import MICRO_BASE
from tests.serve.alone import Kind, write_adapters
from tests.serve.real_server import ENVIRONMENT, command, serving

TEXT = "Once Beno carried Uma because"
SITE, ALLOWED = "http://localhost:3000", "access-control-allow-origin"
TARGETS = ("q_proj", "v_proj", "down_proj")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA of two ranks and OFT as PEFT writes them, and one that is broken."""
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {"low": Kind(2, TARGETS), "high": Kind(8, TARGETS)}
    kinds["turned"] = Kind(0, TARGETS, spread=0.2, block_size=32)
    write_adapters(MICRO_BASE, folder, kinds)
    (folder / "broken").mkdir()
    (folder / "broken" / "adapter_config.json").write_text("{}")
    return folder


def reference(adapters: Path, name: str | None) -> list[float]:
    """Log-probabilities of the text's tokens by transformers and PEFT alone."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(MICRO_BASE, dtype=torch.float32)
    if name is not None:
        model = peft.PeftModel.from_pretrained(model, adapters / name)
    ids = torch.tensor(AutoTokenizer.from_pretrained(MICRO_BASE).encode(TEXT))
    with torch.no_grad():
        logs = model(ids[None]).logits[0].log_softmax(-1)
    return logs[:-1].gather(1, ids[1:, None])[:, 0].tolist()


@pytest.mark.filterwarnings("ignore")
def test_a_base_and_its_adapters(adapters: Path, tmp_path: Path) -> None:
    words = ("micro", "--adapters", str(adapters), "--precision", "fp32", "--device", "cpu")
    with (
        serving(*words, "--cors-origin", SITE) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        told = server.told
        assert told["base"] == "micro" and told["adapters"] == ["high", "low", "turned"]
        assert set(told["refused"]) == {"broken"}
        models = client.get("/v1/models").json()["data"]
        assert [one["id"] for one in models] == ["micro", "high", "low", "turned"]
        assert client.get("/v1/models", headers={"origin": SITE}).headers[ALLOWED] == SITE
        long = {"model": "low", "prompt": TEXT, "ignore_eos": True, "max_tokens": 64}
        used = client.post("/v1/completions", json=long).json()["usage"]
        tokens = client.post("/tokenize", json={"prompt": TEXT}).json()
        assert (used["prompt_tokens"], used["completion_tokens"]) == (tokens["count"], 64)
        assert tokens["max_model_len"] == models[0]["max_model_len"]
        assert "laura.json" in models[1]["laura"]["warnings"][0]
        for name in (None, "low", "high", "turned"):
            body = {"model": name or "micro", "prompt": TEXT, "echo": True, "logprobs": 1}
            answer = client.post("/v1/completions", json={**body, "max_tokens": 1}).json()
            found = answer["choices"][0]["logprobs"]["token_logprobs"]
            expected = reference(adapters, name)
            assert found[0] is None and len(found) == len(expected) + 2
            assert found[1:-1] == pytest.approx(expected, abs=2e-4)
        broken = client.post("/v1/completions", json={"model": "broken", "prompt": "x"})
        assert broken.status_code == 400 and broken.json()["error"]["code"] == "adapter_refused"
        pinned = client.post("/admin/adapters/low/pin")
        assert pinned.json() == {"adapter": "low", "pinned": True}
        assert client.post("/admin/adapters/low/unpin").status_code == 200
        slots = client.get("/admin/state").json()["slots"]
        pinned = {one["adapter"]: one["pinned"] for one in slots}
        assert pinned == {"low": False, "high": False, "turned": False}
        assert slots[2]["bytes"] == 4 * 4 * 32 * (3 * 128 + 352)  # q, k and v; down
        for left in (True, False):
            gone = client.post("/admin/adapters/turned/unload").json()
            assert gone == {"adapter": "turned", "unloaded": left}
        assert client.get("/").status_code == 200
    assert server.child.returncode == 0
    logged = [json.loads(line) for line in server.log if line.startswith("{")]
    assert [line["status"] for line in logged][:2] == [200, 200]


@pytest.mark.filterwarnings("ignore")
def test_drafts_change_the_number_of_steps_and_nothing_that_is_told() -> None:
    words = ("micro", "--precision", "fp32", "--device", "cpu")
    body = {
        "model": "micro",
        "prompt": "Beno likes Uma. " * 2 + "Beno likes ",
        "max_tokens": 60,
        "temperature": 0,
    }
    told, counts = [], []
    for more in ((), ("--no-drafts",)):
        with serving(*words, *more) as server, httpx.Client(base_url=server.url) as client:
            told.append(client.post("/v1/completions", json=body).json()["choices"])
            state = client.get("/admin/state").json()
            counts.append((state["drafted_tokens"], state["accepted_tokens"]))
    assert told[0] == told[1] and told[0][0]["text"]
    assert counts[0][0] >= counts[0][1] > 0 and counts[1] == (0, 0)


def test_what_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for words, told in (
        (("micro", "--host", "0.0.0.0"), "laura tenants add"),
        (("micro", "--database", f"sqlite:///{tmp_path / 'none.db'}"), "there is no"),
        (("no-such-model", "--port", "0"), "no-such-model"),
        (("micro", "--max-forgetting", "nan"), "max_forgetting"),
        (("micro", "--engine", "vllm", "--no-drafts"), "--no-drafts is for"),
    ):
        done = subprocess.run(
            command(*words), env=ENVIRONMENT,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and told in done.stderr, done.stderr
