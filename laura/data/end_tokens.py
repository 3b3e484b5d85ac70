"""Which tokens end an answer: for training, evaluation, the server, chat and vLLM alike."""

from __future__ import annotations

from typing import Any

_QUESTION, _ANSWER = "Hello", "Aye"


def end_tokens(tokenizer: Any, generation_config: Any = None) -> frozenset[int]:
    """Ids of tokens that end an answer.

    They are the tokenizer's own end token, those the model's generation settings name, and the
    special tokens with which the chat template closes an answer: training on conversations
    teaches the model to end with these. Other special tokens of the template (a turn's
    beginning, a thought's) end nothing.

    Args:
        tokenizer: A transformers tokenizer.
        generation_config: The model's; None where it has none, or only the tokenizer counts.
    """
    listed = getattr(generation_config, "eos_token_id", None)
    ids = [*listed] if isinstance(listed, list | tuple) else [listed]
    own = frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
    return own | _closing(tokenizer)


def _closing(tokenizer: Any) -> frozenset[int]:
    """Special tokens behind the answer that ends a conversation."""
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        return frozenset()
    messages = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
    ]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return frozenset()  # who writes a conversation with it is told why that fails
    _, answer, behind = text.rpartition(_ANSWER)
    if not answer:
        return frozenset()
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(tokenizer(behind, add_special_tokens=False)["input_ids"]) & special
