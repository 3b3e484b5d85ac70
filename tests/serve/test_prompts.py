"""Tokens of prompts, and what single tokens stand for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laura.serve.auth import LOCAL
from laura.serve.prompts import PIECE, Prompter, TokenTexts
from laura.serve.schemas import ApiError, ChatMessage, ContentPart
from tests.conftest import make_tiny_tokenizer

TINY = make_tiny_tokenizer()
TEXTS = TokenTexts(TINY)


def sentencepiece_like() -> Any:
    """A BPE with byte fallback and "▁" for spaces, as Llama 2's."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    pieces += ["▁", "a", "b", "é", "▁a", "▁ab", "ab"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("a", "b"), ("▁", "ab")]
    rules = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    rules.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    rules.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rules, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@given(st.text(max_size=30))
def test_bytes_of_a_texts_tokens_are_the_texts_bytes(text: str) -> None:
    ids = TINY.encode(text, add_special_tokens=False)
    assert b"".join(TEXTS.bytes_of(one) or b"" for one in ids) == text.encode()


@pytest.mark.parametrize("text", ["ab a", "é", "日本 ab", "a  b"])
def test_pieces_with_byte_fallback(text: str) -> None:
    tokenizer = sentencepiece_like()
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(texts.bytes_of(one) or b"" for one in ids)
    assert joined == f" {text}".encode() and tokenizer.decode(ids) == text


def test_half_a_character_is_told_as_bytes_and_special_tokens_as_themselves() -> None:
    first, *_ = TINY.encode("é", add_special_tokens=False)
    assert TEXTS.text_of(first) == "bytes:\\xc3"
    assert TEXTS.text_of(TINY.convert_tokens_to_ids("<|im_end|>")) == "<|im_end|>"


def prompter(most: int = 100) -> Prompter:
    return Prompter(TINY, lambda: most)


def refused(work: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asyncio.run(work)
    return caught.value


def test_a_conversation_through_the_template() -> None:
    messages = [
        ChatMessage(role="developer", content="be brief"),
        ChatMessage(
            role="user", content=[ContentPart(type="text", text=one) for one in ("a ", "b")]
        ),
    ]
    ids = asyncio.run(prompter().chat(messages, LOCAL))
    assert TINY.decode(ids) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na b<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_base_without_a_template_cannot_chat() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = None
    fault = refused(
        Prompter(tokenizer, lambda: 10).chat([ChatMessage(role="user", content="a")], LOCAL)
    )
    assert (fault.status, fault.code) == (400, "no_chat_template")


def test_a_template_may_refuse() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    fault = refused(
        Prompter(tokenizer, lambda: 10).chat([ChatMessage(role="user", content="a")], LOCAL)
    )
    assert fault.status == 400 and "roles must alternate" in str(fault)


def test_prompts_as_texts_and_as_tokens() -> None:
    assert asyncio.run(prompter().texts(["a cat", "dog"], LOCAL)) == [
        tuple(TINY.encode("a cat")), tuple(TINY.encode("dog")),
    ]  # fmt: skip
    assert asyncio.run(prompter().texts([[5, 6], [7]], LOCAL)) == [(5, 6), (7,)]


def test_a_begin_token_comes_once() -> None:
    tokenizer = sentencepiece_like()
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    plain, doubled = asyncio.run(Prompter(tokenizer, lambda: 99).texts(["ab", "<s>ab"], LOCAL))
    assert plain.count(1) == doubled.count(1) == 1


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([""], "no tokens"),
        ([[5, 512]], f"token id 512 came, but this base's are 0 to {len(TINY) - 1}"),
        (
            [[5] * 101],
            "maximum context length is 100 tokens. However, your prompt came to 101 tokens",
        ),
        (["cat " * 101], "maximum context length is 100 tokens"),
        (["x" * 10**6], "is 100 tokens. However, your prompt came to 1000000 characters"),
    ],
)
def test_prompts_that_cannot_be_read(prompts: Any, words: str) -> None:
    assert words in str(refused(prompter().texts(prompts, LOCAL)))


@pytest.mark.parametrize(("text", "read"), [("q7 z" * 12_000, [PIECE]), ("q7 z" * 9_000, [36_000])])
def test_what_is_far_too_long_is_refused_before_all_of_it_is_read(
    text: str, read: list[int]
) -> None:
    """One letter a token, 5,000 tokens allowed: the shorter one might fit by its length."""
    tokenizer, found = make_tiny_tokenizer(), list[int]()
    own = tokenizer.encode
    tokenizer.encode = lambda text, **more: found.append(len(text)) or own(text, **more)
    fault = refused(Prompter(tokenizer, lambda: 5000).texts([text], LOCAL))
    assert (fault.code, fault.param) == ("context_length_exceeded", "prompt")
    assert found == read
