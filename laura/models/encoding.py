"""Text to tokens for measurement, exactly as lm-eval 0.4.13 does it.

Source: lm_eval/api/model.py (`_encode_pair`, `loglikelihood`) and
lm_eval/models/huggingface.py (`tok_encode`, `tok_batch_encode`, `generate_until`,
`loglikelihood_rolling`).
"""

from __future__ import annotations

import functools
from typing import Any

from laura.results.errors import DataError, ModelError, UsageError

# Where neither config nor tokenizer states a context length, as in lm-eval.
DEFAULT_CONTEXT_TOKENS = 2048


class Encoder:
    """Encodes the texts of requests for one model.

    Args:
        tokenizer: The model's tokenizer.
        config: The model's configuration.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self.tokenizer, self.config = tokenizer, config

    @functools.cached_property
    def context_tokens(self) -> int:
        """Most tokens the model reads at once, found as lm-eval finds it."""
        config = getattr(self.config, "text_config", None) or self.config
        for name in ("n_positions", "max_position_embeddings", "n_ctx"):
            if getattr(config, name, None) is not None:
                return int(getattr(config, name))
        length = getattr(self.tokenizer, "model_max_length", None)
        # Tokenizers without a limit state an astronomical one.
        return int(length) if length and length < 10**9 else DEFAULT_CONTEXT_TOKENS

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of context and continuation.

        Spaces that end the context go to the continuation; both are encoded
        together and cut where the context alone ends. An empty context becomes the
        beginning-of-text token, or the end-of-text token where there is none.

        Raises:
            DataError: the continuation has no tokens, or more than the model reads.
            ModelError: the context is empty and the tokenizer has neither token.
        """
        if context == "":
            prefix = self._prefix_token()
            after = self._encode(continuation, special=False)
            before, after = ([prefix], after) if after[:1] != [prefix] else (after[:1], after[1:])
        else:
            spaces = len(context) - len(context.rstrip())
            if spaces:
                context, continuation = context[:-spaces], context[-spaces:] + continuation
            before = self._encode(context)
            after = self._encode(context + continuation)[len(before) :]
        if not before or not after:
            part = "context" if not before else "continuation"
            raise DataError(f"{part} of {(context[-40:], continuation[:40])!r} has no tokens")
        if len(after) > self.context_tokens:
            raise DataError(
                f"a continuation has {len(after)} tokens, the model reads at most "
                f"{self.context_tokens}: {continuation[:60]!r}"
            )
        return before, after

    def prompt(self, text: str, max_new_tokens: int) -> list[int]:
        """Tokens of a prompt, cut from the left so that the new ones fit behind it.

        Raises:
            UsageError: max_new_tokens is below 1 or leaves no room for a prompt.
            DataError: the prompt is empty.
        """
        room = self.context_tokens - max_new_tokens
        if max_new_tokens < 1 or room < 1:
            raise UsageError(
                f"max_new_tokens is {max_new_tokens}; allowed are 1 to "
                f"{self.context_tokens - 1} for this model"
            )
        begin = self.tokenizer.bos_token
        doubled = begin is not None and text.startswith(begin)
        tokens = self._tokens(text, special=False if doubled else None)[-room:]
        if not tokens:
            raise DataError("a prompt is empty; there is nothing to continue")
        return tokens

    def document(self, text: str) -> tuple[int, list[int]]:
        """The token a whole text is read after, and the text's own tokens, all of them.

        Raises:
            ModelError: the tokenizer has neither a beginning nor an end token.
        """
        return self._prefix_token(), self._encode(text)

    def _encode(self, text: str, special: bool | None = None) -> list[int]:
        prefix = self._known_prefix()
        if special is None and prefix is not None:
            # A text that already begins with the token gets no second one.
            special = False if text.startswith(self.tokenizer.decode(prefix)) else None
        return self._tokens(text, special)

    def _tokens(self, text: str, special: bool | None) -> list[int]:
        options = {} if special is None else {"add_special_tokens": special}
        return list(self.tokenizer.encode(text, **options))

    def _known_prefix(self) -> int | None:
        begin: int | None = self.tokenizer.bos_token_id
        end: int | None = self.tokenizer.eos_token_id
        return begin if begin is not None else end

    def _prefix_token(self) -> int:
        token = self._known_prefix()
        if token is None:
            raise ModelError(
                "the tokenizer has neither a beginning nor an end token, so an empty context "
                "cannot be scored; set bos_token or eos_token in tokenizer_config.json"
            )
        return token
