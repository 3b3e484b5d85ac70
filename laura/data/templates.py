"""Turning examples into token ids, marking which are learnt, and knowing which end an answer.

Chat rows are rendered by the model's own chat template. Which tokens are the
assistant's is found without the template's help: the conversation up to an
answer is rendered with the generation prompt, and what follows it in the full
rendering, up to the end token, is the answer. So the tokens learnt are exactly
those the model would have to write after the prompt it is given.

What ends an answer is the same for training, evaluation, the server, chat and vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal

from laura.data.examples import Example
from laura.results.errors import DataError

Template = Literal["chat", "plain"]
Regime = Literal["instruct", "pretrain"]
Render = Callable[[list[dict[str, str]], bool], str]
# All tokens, and start, stop and whether an end token closes it, of each answer.
Marked = tuple[list[int], list[tuple[int, int, bool]]]

CHUNK = 1000
TEMPLATE_DAY = datetime(2024, 7, 26)
_QUESTION, _ANSWER = "Hello", "Aye"


@dataclass(frozen=True)
class Encoded:
    """One example as tokens.

    Attributes:
        index: The example's row number.
        token_ids: Its tokens, with begin and end tokens where they belong.
        supervised: Token i is a target to be predicted; never so for the
            first, as nothing predicts it.
        supervised_bytes: UTF-8 bytes of the supervised tokens' text; special
            tokens have none.
    """

    index: int
    token_ids: list[int]
    supervised: list[bool]
    supervised_bytes: int


@dataclass(frozen=True)
class _Rendered:
    """Texts of one example: all of it, and (up to an answer, up to its end) of each answer."""

    example: Example
    full: str
    answers: list[tuple[str, str]]


def encode(example: Example, tokenizer: Any, template: Template, regime: Regime) -> Encoded:
    """Encode one example; see `encode_all`, which is much faster for many."""
    return encode_all([example], tokenizer, template, regime)[0]


def encode_all(
    examples: Sequence[Example], tokenizer: Any, template: Template, regime: Regime
) -> list[Encoded]:
    """Encode examples, in order.

    `chat` renders with the tokenizer's chat template. `plain` joins the
    messages with blank lines and puts the end token after every answer:
    `{prompt}\\n\\n{answer}{eos}`. A text is the text and the end token under
    both. Where a chat template ends the last answer without a special token,
    the tokenizer's end token is added. A begin token is added to plain text if
    the tokenizer itself adds one.

    Args:
        examples: What to encode.
        tokenizer: A transformers tokenizer.
        template: `chat` or `plain`.
        regime: `instruct` supervises the assistant's answers with their end
            token; `pretrain` every token but the first.

    Raises:
        DataError: the tokenizer has no chat template or end token, the template
            refuses a conversation or writes an answer differently once more
            follows, or an instruct row has no answer.
    """
    render = prompt_render(tokenizer, template)
    encoder = _ChunkEncoder(tokenizer, render, regime, begin=template == "plain")
    return list(encoder.encode(iter(examples)))


def chat_prompts(tokenizer: Any) -> Callable[[list[dict[str, str]]], str]:
    """Turns a conversation into the text after which the model writes its next answer.

    Raises:
        DataError: the tokenizer has no chat template.
    """
    render = prompt_render(tokenizer, "chat")
    return lambda messages: render(messages, True)


def prompt_render(tokenizer: Any, template: Template) -> Render:
    """Turns messages into text, with True up to where the model writes its next answer.

    Raises:
        DataError: the tokenizer has no chat template, and one is asked for.
    """
    return _chat_render(tokenizer) if template == "chat" else _plain_render(tokenizer)


def chat_template(tokenizer: Any) -> str:
    """A tokenizer's chat template, with the day fixed where it writes one.

    Raises:
        DataError: it has none, or several and no default.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the model's tokenizer has no chat template; set data.template: plain, or use the "
            "instruct version of the model"
        )
    try:
        return _with_fixed_day(str(tokenizer.get_chat_template()))
    except ValueError as error:
        raise DataError(
            f"the model's tokenizer has several chat templates and no default ({error}); set "
            "data.template: plain"
        ) from error


def check_end_token(encoded: Sequence[Encoded], tokenizer: Any) -> None:
    """Check that every instruct example teaches the model to stop.

    Raises:
        DataError: the last supervised token of an example is not an end token
            (it was cut off, or the template never writes one).
    """
    ends = end_tokens(tokenizer)
    for item in encoded:
        learnt = [token for token, on in zip(item.token_ids, item.supervised, strict=True) if on]
        if not learnt or learnt[-1] not in ends:
            raise DataError(
                f"example {item.index} does not teach the end token after its answer, so the "
                "model would not learn to stop; do not truncate instruct examples (overlong: "
                "drop), or use template: plain"
            )


class _ChunkEncoder:
    """Encodes examples chunk by chunk, so that the tokenizer sees many texts at once."""

    def __init__(self, tokenizer: Any, render: Render, regime: Regime, begin: bool) -> None:
        self.tokenizer = tokenizer
        self.render = render
        self.regime = regime
        self.ends = end_tokens(tokenizer)
        self.begin = _begin_token(tokenizer)
        self.begin_messages = self.begin if begin else []

    def encode(self, examples: Iterator[Example]) -> Iterator[Encoded]:
        while chunk := list(islice(examples, CHUNK)):
            rendered = [self._rendered(example) for example in chunk]
            ids = self._tokenize(text for item in rendered for text in _texts(item))
            marked = [self._spans(item, ids) for item in rendered]
            joined = [item for item, found in zip(rendered, marked, strict=True) if found is None]
            apart = self._tokenize(text for item in joined for text in _pieces(item))
            for item, found in zip(rendered, marked, strict=True):
                yield self._encoded(item, ids, found or self._spans_apart(item, ids, apart))

    def _tokenize(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Tokens of each text; one often occurs twice, as the last answer ends with the whole."""
        once = list(dict.fromkeys(texts))
        if not once:
            return {}
        found = self.tokenizer(
            once,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        return {text: list(ids) for text, ids in zip(once, found, strict=True)}

    def _rendered(self, example: Example) -> _Rendered:
        if not example.messages:
            if self.regime == "instruct":
                raise DataError(
                    f"example {example.index} is plain text, but regime: instruct learns answers; "
                    "give messages or prompt and completion, or set regime: pretrain"
                )
            return _Rendered(example, example.text, [])
        messages = [{"role": role, "content": content} for role, content in example.messages]
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if self.regime == "pretrain":
            return _Rendered(example, self._render(example, messages, False), [])
        if not turns:
            raise DataError(f"example {example.index} has no assistant message to learn from")
        # What follows the last answer is never learnt, so it is left out.
        messages = messages[: turns[-1] + 1]
        full = self._render(example, messages, False)
        answers = []
        for turn in turns:
            last = turn == turns[-1]
            before = self._render(example, messages[:turn], True)
            through = full if last else self._render(example, messages[: turn + 1], False)
            if not (full.startswith(through) and through.startswith(before)):
                raise _unstable(example, turn)
            answers.append((before, through))
        return _Rendered(example, full, answers)

    def _render(self, example: Example, messages: list[dict[str, str]], prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self.render(messages, prompt)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"the chat template refuses example {example.index}: {error}. Mend the row, or "
                "use template: plain"
            ) from error

    def _encoded(self, item: _Rendered, ids: dict[str, list[int]], marked: Marked) -> Encoded:
        index = item.example.index
        if not item.example.messages:
            tokens = [*self.begin, *ids[item.full], self._end()]
            return self._finished(index, tokens, [True] * len(tokens))
        if self.regime == "pretrain":
            tokens = self._ended([*self.begin_messages, *ids[item.full]])
            return self._finished(index, tokens, [True] * len(tokens))
        tokens, spans = marked
        start, stop, ended = spans[-1]
        if not ended:
            tokens = [*tokens[:stop], self._end()]
            spans = [*spans[:-1], (start, stop + 1, True)]
        shift = len(self.begin_messages)
        supervised = [False] * (shift + len(tokens))
        for start, stop, _ in spans:
            supervised[shift + start : shift + stop] = [True] * (stop - start)
        return self._finished(index, [*self.begin_messages, *tokens], supervised)

    def _spans(self, item: _Rendered, ids: dict[str, list[int]]) -> Marked | None:
        """Tokens of the whole with its answers, or None where a token reaches over a border."""
        tokens, spans = ids[item.full], []
        for before_text, through_text in item.answers:
            before, through = ids[before_text], ids[through_text]
            stop, ended = self._answer_stop(through, len(before))
            if tokens[: len(before)] != before or tokens[:stop] != through[:stop]:
                return None
            spans.append((len(before), stop, ended))
        return tokens, spans

    def _spans_apart(
        self, item: _Rendered, ids: dict[str, list[int]], apart: dict[str, list[int]]
    ) -> Marked:
        """Prompts and answers tokenized apart.

        The model is given the prompt's tokens and writes the answer's, so a
        token that holds the end of one and the start of the other never occurs.
        """
        found = [apart[piece] for piece in _pieces(item)]
        tokens: list[int] = []
        spans = []
        for prompt, answer in zip(found[:-1:2], found[1:-1:2], strict=True):
            tokens += prompt
            stop, ended = self._answer_stop(answer, 0)
            spans.append((len(tokens), len(tokens) + stop, ended))
            tokens += answer
        tokens += found[-1]
        if self._text(tokens) != self._text(ids[item.full]):
            raise DataError(
                f"example {item.example.index}: the tokenizer joins the end of the prompt and the "
                "start of the answer into one token, and cannot write them apart; remove white "
                "space at the start of the answer, or use another template"
            )
        return tokens, spans

    def _answer_stop(self, tokens: list[int], start: int) -> tuple[int, bool]:
        """Where the answer that starts at `start` stops, and whether an end token closes it."""
        for place in range(len(tokens) - 1, start - 1, -1):
            if tokens[place] in self.ends:
                if self._text(tokens[place + 1 :]).strip():
                    break  # it is part of the answer's own text
                return place + 1, True
        return len(tokens), False

    def _ended(self, tokens: list[int]) -> list[int]:
        return tokens if self._answer_stop(tokens, 0)[1] else [*tokens, self._end()]

    def _end(self) -> int:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise DataError(
                "the tokenizer has no end token (eos_token), so a model cannot learn to stop; "
                "set eos_token in tokenizer_config.json of the model's folder"
            )
        return int(end)

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens)) if tokens else ""

    def _finished(self, index: int, tokens: list[int], supervised: list[bool]) -> Encoded:
        supervised[0] = False
        learnt = [token for token, on in zip(tokens, supervised, strict=True) if on]
        text = self.tokenizer.decode(
            learnt, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Encoded(index, tokens, supervised, len(text.encode("utf-8")))


def _texts(item: _Rendered) -> list[str]:
    return [item.full, *(text for answer in item.answers for text in answer)]


def _pieces(item: _Rendered) -> list[str]:
    """Prompt, answer, prompt, answer, ..., and what follows the last answer."""
    pieces, place = [], 0
    for before, through in item.answers:
        pieces += [before[place:], through[len(before) :]]
        place = len(through)
    return [*pieces, item.full[place:]]


def _begin_token(tokenizer: Any) -> list[int]:
    """The begin token, if the tokenizer puts it before text by itself."""
    begin = tokenizer.bos_token_id
    ids = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    adds = begin is not None and ids[:1] == [begin] and bare[:1] != [begin]
    return [int(begin)] if adds else []


def _chat_render(tokenizer: Any) -> Render:
    template = chat_template(tokenizer)

    def render(messages: list[dict[str, str]], prompt: bool) -> str:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        return str(text)

    return render


def _with_fixed_day(template: str) -> str:
    """Some templates write today's date; a run must not depend on the day it is done."""
    if "strftime_now" not in template:
        return template
    formats = {found[1] for found in re.findall(r"strftime_now\(\s*(['\"])(.*?)\1", template)}
    days = {text: TEMPLATE_DAY.strftime(text) for text in sorted(formats)}
    macro = (
        "{%- macro strftime_now(format) -%}"
        f"{{{{ {days!r}.get(format, '{TEMPLATE_DAY:%d %b %Y}') }}}}"
        "{%- endmacro %}"
    )
    return macro + template


def _plain_render(tokenizer: Any) -> Render:
    end = tokenizer.eos_token or ""

    def render(messages: list[dict[str, str]], prompt: bool) -> str:
        parts = [m["content"] + (end if m["role"] == "assistant" else "") for m in messages]
        return "\n\n".join([*parts, ""] if prompt else parts)

    return render


def _unstable(example: Example, turn: int) -> DataError:
    return DataError(
        f"the chat template is not prefix-stable: in example {example.index} it writes message "
        f"{turn} and what stands before it differently once the conversation goes on, so what "
        "the model would have to write cannot be told from the prompt. Split the conversation "
        "into rows with one answer each, or use template: plain"
    )


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
