"""GGUF files written from known models must come back as the same models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from laura.models.gguf import convert, converted
from laura.models.load import load_base
from laura.results.errors import ModelError
from tests.conftest import make_tiny_model

IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81, 81, 300]])
TEXTS = (
    "The cat sat on 1234 mats,  it's 57% of\n\n 3.14!",
    "你好 naïve ☃ \t x",
    "<|im_start|>user\nHow many?<|im_end|>\n",
    "",
)


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's own reordering of query and key rows (`convert_hf_to_gguf.py`)."""
    rows = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, rows, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def gguf_name(name: str, architecture: str) -> str:
    """The `gguf` library's own table of names."""
    arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[architecture]
    stem, kind = name.rsplit(".", 1)
    found = gguf.get_tensor_name_map(arch, 2).get_name(stem)
    assert found
    return f"{found}.{kind}"


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    *,
    quantise: Callable[[str], gguf.GGMLQuantizationType] | None = None,
    pre: str = "smollm",
    change: Callable[[gguf.GGUFWriter], None] | None = None,
) -> None:
    """Write a model as llama.cpp's converter does."""
    config = model.config
    architecture = config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    add_tokenizer(writer, tokenizer, pre)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        if architecture == "llama" and ".q_proj" in name:
            array = permute(array, config.num_attention_heads)
        if architecture == "llama" and ".k_proj" in name:
            array = permute(array, config.num_key_value_heads)
        kind = quantise(name) if quantise and array.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(gguf_name(name, architecture), data, raw_dtype=kind)
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, pre: str) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda pair: pair[1])]
    tokens += [f"[PAD{number}]" for number in range(len(tokens), 512)]
    special = [*tokenizer.all_special_tokens, "<|im_start|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in special else 5 if t[:4] == "[PAD" else 1 for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model.eval()(IDS).logits


def back(path: Path, folder: Path) -> Any:
    folder.mkdir()
    convert(path, folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_a_float_file_gives_the_same_logits_config_and_tokens(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_model, tiny_tokenizer)
    model = back(tmp_path / "tiny.gguf", tmp_path / "out")
    torch.testing.assert_close(logits(model), logits(tiny_model), rtol=0, atol=1e-6)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    for field in ("rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "eos_token_id"):
        assert getattr(model.config, field) == getattr(tiny_model.config, field), field
    assert model.config.rope_parameters == tiny_model.config.rope_parameters

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert tokenizer(text).input_ids == tiny_tokenizer(text).input_ids, text
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    messages = [{"role": "user", "content": "How many cats?"}]
    assert tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    ) == tiny_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_0", "F16", "BF16"])
def test_quantised_values_are_kept_exactly(
    kind: str, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    quantised = gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "t.gguf", tiny_model, tiny_tokenizer, quantise=lambda _: quantised)
    model = back(tmp_path / "t.gguf", tmp_path / "out")
    # Blocks run along a row, so quantisation does not care for the order of rows.
    for tensor in tiny_model.state_dict().values():
        if tensor.dim() == 2:
            data = gguf.dequantize(gguf.quantize(tensor.numpy(), quantised), quantised)
            tensor.copy_(torch.from_numpy(np.array(data, dtype=np.float32)))
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    torch.testing.assert_close(logits(model), logits(tiny_model), rtol=0, atol=1e-6)


def test_llama_3s_stretched_rotation_is_recovered(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rotation = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = make_tiny_model(
        1,
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        max_position_embeddings=131072,
        rope_parameters=rotation,
    )
    plain = 500000.0 ** (-np.arange(32) / 32)
    factors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)

    def add_factors(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors)

    path = tmp_path / "t.gguf"
    write_gguf(path, model, tiny_tokenizer, change=add_factors, pre="llama-bpe")
    ours = back(path, tmp_path / "out")
    assert ours.config.rope_parameters == rotation
    torch.testing.assert_close(logits(ours), logits(model), rtol=0, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("it's 1234567 dogs")
    assert [piece for piece, _ in pieces] == ["it", "'s", "Ġ", "123", "456", "7", "Ġdogs"]

    factors[:] = np.linspace(1, 3, 32)
    write_gguf(path, model, tiny_tokenizer, change=add_factors, pre="llama-bpe")
    with pytest.raises(ModelError, match=r"rope_freqs.weight is not Llama 3's"):
        back(path, tmp_path / "again")


def test_qwen2_keeps_the_order_of_its_rows_and_its_biases(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=512,
    )
    torch.manual_seed(2)
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    write_gguf(tmp_path / "t.gguf", model, tiny_tokenizer, pre="qwen2")
    ours = back(tmp_path / "t.gguf", tmp_path / "out")
    assert ours.config.model_type == "qwen2"
    torch.testing.assert_close(logits(ours), logits(model), rtol=0, atol=1e-6)


def test_large_models_are_written_in_shards(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laura.models.gguf.SHARD_BYTES", 100_000)
    write_gguf(tmp_path / "tiny.gguf", tiny_model, tiny_tokenizer)
    model = back(tmp_path / "tiny.gguf", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(logits(model), logits(tiny_model), rtol=0, atol=1e-6)


def test_the_cache_knows_a_file_by_its_content(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAURA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model, tiny_tokenizer)
    first = converted(path)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert converted(path) == first
    base = load_base(str(path), device="cpu")
    assert (base.name, base.folder) == (str(path), first)
    torch.testing.assert_close(logits(base.model), logits(tiny_model), rtol=0, atol=1e-6)
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    write_gguf(path, tiny_model, tiny_tokenizer, pre="gpt-2")
    assert converted(path) != first


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused_and_leaves_nothing(
    share: float,
    tiny_model: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAURA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model, tiny_tokenizer)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"not a whole GGUF file .* download it again"):
        converted(path)
    assert [entry.name for entry in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_what_cannot_be_represented_is_refused_by_name(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "t.gguf"
    write_gguf(path, tiny_model, tiny_tokenizer, pre="tekken")
    with pytest.raises(ModelError, match=r"pre-tokenizer 'tekken'; allowed are smollm"):
        back(path, tmp_path / "a")

    def add_expert(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((2, 4), np.float32))

    write_gguf(path, tiny_model, tiny_tokenizer, change=add_expert)
    with pytest.raises(ModelError, match=r"blk.0.ffn_gate_exps.weight has no place"):
        back(path, tmp_path / "b")

    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"architecture 'mamba'; allowed are llama"):
        back(path, tmp_path / "c")
