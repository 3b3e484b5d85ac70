"""The tokenizer that a GGUF file describes, as a tokenizer.json.

transformers reads GGUF tokenizers too, but ignores `tokenizer.ggml.pre`: with
SmolLM2 it does not separate digits reliably. So the table of pre-tokenizers
stands here, and an unknown one is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from laura.results.errors import ModelError
from laura.results.store import read_json, write_json

# llama.cpp's token types
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6

# The regular expressions of the original tokenizer.json files, as in llama.cpp's llama-vocab.cpp.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_EXPRESSIONS = {"llama-bpe": _LLAMA3, "qwen2": _QWEN2}
PRE_TOKENIZERS = ("smollm", "gpt-2", *_EXPRESSIONS)

Value = Callable[..., Any]
Has = Callable[[str], bool]


def save_tokenizer(value: Value, has: Has, folder: Path, source: Path) -> None:
    """Write the tokenizer of a GGUF file's metadata into a model folder.

    Args:
        value: Gives the metadata under a key, or a default.
        has: Whether there is metadata under a key.
        folder: Receives tokenizer.json, tokenizer_config.json, chat_template.jinja.
        source: The GGUF file, for messages.

    Raises:
        ModelError: a tokenizer model or pre-tokenizer that we do not know.
    """
    from transformers import PreTrainedTokenizerFast

    kind = str(value("tokenizer.ggml.model"))
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    if kind not in builders:
        raise ModelError(
            f"{source} has a tokenizer of model {kind!r}; allowed are {', '.join(builders)}"
        )
    tokens: list[str] = value("tokenizer.ggml.tokens")
    tokenizer = builders[kind](value, tokens, source)
    _mark_special(tokenizer, tokens, value("tokenizer.ggml.token_type", [1] * len(tokens)))
    special = {
        f"{ours}_token": tokens[int(value(f"tokenizer.ggml.{theirs}_token_id"))]
        for ours, theirs in {
            "bos": "bos",
            "eos": "eos",
            "unk": "unknown",
            "pad": "padding",
        }.items()
        if has(f"tokenizer.ggml.{theirs}_token_id")
    }
    if "bos_token" in special and value("tokenizer.ggml.add_bos_token", kind == "llama"):
        _begin_with(tokenizer, special["bos_token"])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=int(value("ARCH.context_length")),
        clean_up_tokenization_spaces=False,
        **special,
    )
    if has("tokenizer.chat_template"):
        wrapped.chat_template = str(value("tokenizer.chat_template"))
    wrapped.save_pretrained(folder)
    # The name that every version of transformers knows; newer ones write their own.
    facts = read_json(folder / "tokenizer_config.json")
    write_json(
        folder / "tokenizer_config.json", {**facts, "tokenizer_class": "PreTrainedTokenizerFast"}
    )


def _byte_level(value: Value, tokens: list[str], source: Path) -> Any:
    """GPT-2 style byte-level BPE with the file's pre-tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = str(value("tokenizer.ggml.pre", "none"))
    merges = [tuple(pair.split(" ", 1)) for pair in value("tokenizer.ggml.merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token whole, without merging.
    model = models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe")
    tokenizer = Tokenizer(model)
    steps: list[Any]
    if pre == "gpt-2":
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        steps = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pre in _EXPRESSIONS:
        split = pre_tokenizers.Split(Regex(_EXPRESSIONS[pre]), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        raise ModelError(
            f"{source} has the pre-tokenizer {pre!r}; allowed are {', '.join(PRE_TOKENIZERS)}. "
            "Use the model's original folder instead"
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(value: Value, tokens: list[str], source: Path) -> Any:
    """SentencePiece BPE as in Llama 2: no pre-tokenizer, byte fallback, merges by score.

    A merge's rank is the score of the token that it makes, as in
    SentencePiece: any two tokens whose union is a token may merge.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = value("tokenizer.ggml.scores")
    numbers = {token: number for number, token in enumerate(tokens)}
    ranked = [
        (-scores[numbers[token]], numbers[token[:cut]], numbers[token[cut:]], token, cut)
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in numbers and token[cut:] in numbers
    ]
    merges = [(token[:cut], token[cut:]) for *_, token, cut in sorted(ranked)]
    unknown = tokens[int(value("tokenizer.ggml.unknown_token_id", 0) or 0)]
    model = models.BPE(numbers, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    if value("tokenizer.ggml.add_space_prefix", 1):
        steps.insert(0, normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if len(steps) == 2 else []),
        ]
    )
    return tokenizer


def _mark_special(tokenizer: Any, tokens: list[str], kinds: list[int]) -> None:
    """Take control tokens, and those the model's makers added, whole out of any text."""
    from tokenizers import AddedToken

    pairs = list(zip(tokens, kinds, strict=True))
    control = [AddedToken(t, special=True, normalized=False) for t, k in pairs if k == CONTROL]
    defined = [AddedToken(t, normalized=False) for t, k in pairs if k == USER_DEFINED]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(defined)


def _begin_with(tokenizer: Any, token: str) -> None:
    """Put the beginning token before every text."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token} $B",
        special_tokens=[(token, tokenizer.token_to_id(token))],
    )
