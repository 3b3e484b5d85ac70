"""The micro base's tokenizer: byte-level BPE, single digits, three special tokens.

It is trained on source and target texts alike, as a real base's is on the whole
web, so that the target domains need no more tokens a word than the source does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
WORDS = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Words and marks with their leading space, single digits, runs of white space.
PIECE = r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]|\s+"


def pieces(texts: Iterable[str]) -> list[str]:
    """The different pieces of texts that tokens never reach across, in order of first sight."""
    return list(dict.fromkeys(piece for text in texts for piece in re.findall(PIECE, text)))


def train_tokenizer(texts: Iterable[str]) -> Any:
    """A transformers tokenizer of `WORDS` tokens, learnt from texts.

    The same texts give the same tokenizer.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rules.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rules.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=rules,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )
