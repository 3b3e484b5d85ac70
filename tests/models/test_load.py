"""Loading a base: what works, and one clear message for each thing that does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from laura.models.load import Base, fingerprint, load_base, resolve_model
from laura.models.registry import MICRO_BASE
from laura.results.errors import HubError, ModelError, UsageError

IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81]])


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_loads_ready_for_use(tiny_folder: Path, tiny_model: Any) -> None:
    base = load_base(str(tiny_folder), device="cpu")
    assert isinstance(base, Base)
    assert (base.name, base.folder) == (str(tiny_folder), tiny_folder)
    assert not base.model.training
    assert base.model.config._attn_implementation == "laura"
    with torch.inference_mode():
        output = base.model(IDS)
        assert output.get("past_key_values") is None
        torch.testing.assert_close(output.logits, tiny_model(IDS).logits)
    assert base.tokenizer.eos_token == "<|im_end|>"
    assert load_base(str(tiny_folder), dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_folders_own_code_is_never_run(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks on the terminal, and runs it after a "y"."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    # transformers runs a copy, from a folder of its own.
    code = f"from pathlib import Path\nPath({str(folder)!r}, 'ran').touch()\n"
    (folder / "theirs.py").write_text(code + "class Config: ...\nclass Tokenizer: ...\n")
    own = {
        "config.json": {
            "model_type": "theirs",
            "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Theirs",
            "auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]},
        },
    }
    edit_json(folder / name, lambda value: value.update(own[name]))
    with pytest.raises(ModelError, match="never runs the code of a model folder"):
        load_base(str(folder), device="cpu")
    assert not list(folder.rglob("ran"))


def test_every_token_can_be_learnt(tiny_folder: Path) -> None:
    """transformers gives the padding token no gradient, and often it is the end token too."""
    model = load_base(str(tiny_folder), device="cpu").model
    ids = torch.tensor([[model.config.pad_token_id, 9, 200]])
    model.get_input_embeddings()(ids).sum().backward()
    assert model.get_input_embeddings().weight.grad[model.config.pad_token_id].abs().sum() > 0


def test_loading_says_nothing_and_leaves_transformers_as_it_was(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_base(str(tiny_folder), device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_knows_the_content_only(folder: Path, tiny_folder: Path) -> None:
    original = fingerprint(tiny_folder)
    edit_json(
        folder / "config.json", lambda c: c.update(transformers_version="4.0", use_cache=True)
    )
    assert fingerprint(folder) == original
    edit_json(folder / "config.json", lambda c: c.update(rms_norm_eps=1e-3))
    assert fingerprint(folder) != original
    shutil.copy(tiny_folder / "config.json", folder)
    edit_weights(folder, lambda t: t["model.norm.weight"].add_(1))
    assert fingerprint(folder) != original


def test_shards_load_and_a_missing_one_is_named(folder: Path, tiny_model: Any) -> None:
    (folder / "model.safetensors").unlink()
    tiny_model.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    base = load_base(str(folder), device="cpu")
    assert torch.equal(base.model(IDS).logits, tiny_model(IDS).logits)
    shards[0].unlink()
    with pytest.raises(ModelError, match=f"no {shards[0].name}, which the index names"):
        load_base(str(folder))


def configured(**changes: Any) -> Callable[[Path], None]:
    """Spoils the configuration."""
    return lambda folder: edit_json(folder / "config.json", lambda c: c.update(changes))


def holding(name: str, content: bytes) -> Callable[[Path], Any]:
    """Spoils a file."""
    return lambda folder: (folder / name).write_bytes(content)


def without(pattern: str) -> Callable[[Path], Any]:
    """Removes files."""
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def weighing(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], Any]:
    """Spoils the weights."""
    return lambda folder: edit_weights(folder, change)


def renamed(name: str, other: str) -> Callable[[Path], Any]:
    """Calls a file by another name."""
    return lambda folder: (folder / name).rename(folder / other)


def is_truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lacks_end_token(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", lambda c: c.pop("eos_token"))


UP, EXTRA = "model.layers.1.mlp.up_proj.weight", "model.layers.0.extra.weight"
WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("*"), r"no config.json; no model.safetensors; no tokenizer \(tokenizer.json"),
        (renamed(WEIGHTS, "pytorch_model.bin"), r"has pytorch_model.bin, but pickled .* not read"),
        (without("tokenizer*"), r"no tokenizer \(tokenizer.json\)"),
        (
            holding("tokenizer.json", b'{"version": "1.0", "model": 3}'),
            r"the tokenizer in .* cannot be read .* copy tokenizer.json",
        ),
        (lacks_end_token, r"has no end token.* set eos_token in its tokenizer_config.json"),
        (configured(vocab_size=100), r"tokenizer has \d+ tokens, the model only 100 embeddings"),
        (is_truncated, r"model.safetensors is truncated or damaged"),
        (holding(WEIGHTS, b"\xff" * 1000), r"model.safetensors is truncated or damaged"),
        (weighing(lambda t: t.pop(UP)), r"lack model.layers.1.mlp.up_proj.weight; copy"),
        (weighing(lambda t: t.update({EXTRA: torch.ones(2)})), rf"does not know, {EXTRA}; copy"),
        (
            weighing(lambda t: t.update({"model.norm.weight": torch.ones(32)})),
            r"the weights in .* do not fit its config.json",
        ),
        (holding("config.json", b"{"), r"config.json is damaged; copy it again"),
        (
            configured(model_type="nonesuch"),
            r"describes no model that transformers knows .* Laura runs llama, mistral, qwen2",
        ),
        (
            holding("config.json", b'{"model_type": "t5"}'),
            r"'t5' model, which cannot be built as a causal language model",
        ),
        (
            holding("config.json", b'{"model_type": "gpt2", "n_layer": 1}'),
            r"'gpt2' model, which has no list of decoder layers; Laura runs llama, mistral, qwen2",
        ),
        (
            configured(model_type="olmoe"),
            r"'olmoe' model, whose layers lack mlp.gate_proj, mlp.up_proj, mlp.down_proj; Laura",
        ),
        (
            configured(model_type="qwen3_moe", mlp_only_layers=[1], head_dim=16),
            r"'qwen3_moe' model, whose layers lack mlp.experts",
        ),
        (
            configured(model_type="gemma3", text_config={"model_type": "gemma3_text"}),
            r"'gemma3' model, which reads more than text; save its language model by itself",
        ),
        (
            configured(model_type="gemma3_text", use_bidirectional_attention=True),
            r"'gemma3_text' model, whose layers have bidirectional attention; Laura",
        ),
        (
            configured(model_type="qwen3_next", head_dim=16),
            r"'qwen3_next' model, whose layers lack self_attn.q_proj, self_attn.k_proj",
        ),
        (
            configured(quantization_config={"quant_method": "gptq", "bits": 4}),
            r"is quantised; use the unquantised model, or a GGUF",
        ),
        (renamed("config.json", "adapter_config.json"), r"an adapter, not a model; give its base"),
    ],
)
def test_an_unusable_folder_gets_one_clear_message(
    spoil: Callable[[Path], None], message: str, folder: Path
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_base(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", r"did you mean smollm2-135m\?"),
        ("./not-there", r"does not exist; check the path"),
        ("some/where/model.gguf", r"does not exist; check the path"),
        ("~/not-there", r"does not exist; check the path"),
        ("a/b/c", r"'a/b/c' is no model"),
        ("", r"'' is no model"),
        ("  ", r"'  ' is no model"),
        ("\0", r"is no model"),
        (__file__, r"is neither a folder nor a .gguf file"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(name)


def test_an_unreachable_hub_offers_other_ways() -> None:
    with pytest.raises(HubError, match="laura fetch smollm2-135m-instruct-q4"):
        load_base("nobody/nothing")
    with pytest.raises(HubError, match="meta-llama/Llama-2-7b-hf is not whole in its cache"):
        load_base("llama-2-7b")


def test_a_revision_belongs_to_the_hub(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="is no Hub id; leave the revision out"):
        load_base(str(tiny_folder), revision="main")


def test_unknown_dtype_and_device(tiny_folder: Path) -> None:
    with pytest.raises(UsageError, match="'int4' is unknown; allowed are float32"):
        load_base(str(tiny_folder), dtype="int4")
    with pytest.raises(UsageError, match="toaster"):
        load_base(str(tiny_folder), device="toaster")


@pytest.mark.slow
def test_the_real_small_model_speaks_english(smollm2: Base) -> None:
    tokenizer, model = smollm2.tokenizer, smollm2.model
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    special = [tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token]
    assert special == ["<|im_end|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer("<repo_name>").input_ids == [3]

    question = [{"role": "user", "content": "What is the capital of France? Answer shortly."}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        f"<|im_end|>\n<|im_start|>user\n{question[0]['content']}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    with torch.inference_mode():
        while ids[-1] != tokenizer.eos_token_id or len(ids) == start:
            assert len(ids) < start + 40, "the answer does not end"
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert "Paris" in tokenizer.decode(ids[start:])


def test_only_a_model_on_disk_hides_a_named_one(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "micro" / "runs").mkdir(parents=True)  # a study called as the model
    assert resolve_model("micro") == MICRO_BASE
    shutil.copytree(tiny_folder, tmp_path / "micro", dirs_exist_ok=True)
    assert resolve_model("micro") == Path("micro")


def test_a_damaged_gguf_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAURA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        load_base(str(path))
