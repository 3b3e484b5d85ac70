"""Answers held to a grammar, against a loop that knows all texts of its language."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from laura.engine.grammar import GrammarCompiler, Matcher
from laura.engine.requests import Grammar
from laura.engine.sampler import Draw
from laura.engine.scheduler import TokenSequence
from laura.results.errors import GrammarError
from tests.engine.alone import Heard, alone, hear, next_logits, serving, tiny

WORDS = ["yes", "no", "no way", "nobody knows", "yes and no"]
CHOICE = Grammar("regex", "|".join(WORDS))
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "yy"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
OBJECTS = [
    f'{{"a":{colon}{a},{comma}"b":{last}{json.dumps(b)}}}'
    for a in ("true", "false")
    for b in ("x", "yy")
    for colon in ("", " ")
    for comma in ("", " ")
    for last in ("", " ")
]
PROMPT = "question: how many cats? answer"


@pytest.fixture
def compiler(tiny_tokenizer: Any) -> Iterator[GrammarCompiler]:
    vocabulary = tiny().config.vocab_size
    made = GrammarCompiler(tiny_tokenizer, vocabulary, {tiny_tokenizer.eos_token_id}, lambda: None)
    yield made
    made.close()


def matcher(compiler: GrammarCompiler, grammar: Grammar) -> Matcher:
    return compiler.matcher(grammar).result(60)


def allowed(tokenizer: Any, text: str, texts: Sequence[str]) -> list[int]:
    """Tokens after which a text of the language can still come, or has just ended."""
    special = set(tokenizer.all_special_ids)
    found = [tokenizer.eos_token_id] if text in texts else []
    for token in range(len(tokenizer)):
        piece = tokenizer.decode([token])
        if token not in special and piece and any(one.startswith(text + piece) for one in texts):
            found.append(token)
    return found


def going_on(tokenizer: Any, own: Matcher, text: str, texts: Sequence[str]) -> list[int]:
    """What a matcher allows, held against the texts there are."""
    bits = np.unpackbits(own.masks().view(np.uint8)[0], bitorder="little")
    found, known = bits.nonzero()[0].tolist(), allowed(tokenizer, text, texts)
    following = {one[len(text)] for one in texts if one.startswith(text) and one != text}
    if len(following) > 1 or text in texts:
        assert found == sorted(known)
    else:
        # Of text that is forced it is the token with which it is usually written.
        assert found and {*found} <= {*known}
    return [int(one) for one in found]


def naive(
    model: Any,
    tokenizer: Any,
    own: Matcher,
    texts: Sequence[str],
    heat: float = 0.0,
    seed: int = 0,
) -> tuple[list[int], list[float]]:
    """Tokens and the model's own log-probabilities, one after the other."""
    prompt, tokens, nats = tokenizer.encode(PROMPT), list[int](), list[float]()
    source = random.Random(seed)
    while not own.complete:
        ids = going_on(tokenizer, own, tokenizer.decode(tokens), texts)
        logits = next_logits(model, [*prompt, *tokens])
        if heat:
            chances = torch.zeros_like(logits)
            chances[ids] = (logits[ids] / heat).softmax(0)
            token = int((chances.cumsum(0) <= source.random()).sum())
        else:
            token = max(ids, key=lambda one: float(logits[one]))
        if token == tokenizer.eos_token_id:
            break
        tokens.append(token)
        own.add(token)
        nats.append(float(logits.log_softmax(0)[token]))
    return tokens, nats


def held(tokenizer: Any, own: Matcher | None, **more: Any) -> TokenSequence:
    prompt = tuple(tokenizer.encode(PROMPT))
    return TokenSequence("tenant", prompt, 60, matcher=own, top=0, **more)


def answered(tokenizer: Any, sequences: Sequence[TokenSequence], drafts: bool) -> list[Heard]:
    heard: dict[TokenSequence, Heard] = {}
    with serving(tiny(), tokenizer, cache_bytes=2**25, drafts=drafts) as engine:
        for one in sequences:
            assert engine.add(one)
        hear(engine, heard)
    return [heard[one] for one in sequences]


@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("heat", [0.0, 1.0, 3.0])
def test_tokens_and_scores_are_those_of_a_naive_loop(
    compiler: GrammarCompiler, tiny_tokenizer: Any, heat: float, drafts: bool
) -> None:
    kinds = ((CHOICE, WORDS), (Grammar.of_schema(SCHEMA), OBJECTS))
    seeds = range(6 if heat else 1)
    wanted = [(*kind, seed) for kind in kinds for seed in seeds]
    sequences = [
        held(
            tiny_tokenizer,
            matcher(compiler, grammar),
            draw=Draw(heat, source=random.Random(seed) if heat else None),
        )
        for grammar, _, seed in wanted
    ]
    told, model = answered(tiny_tokenizer, sequences, drafts), tiny()
    for one, heard, (grammar, texts, seed) in zip(sequences, told, wanted, strict=True):
        own = matcher(compiler, grammar)
        tokens, nats = naive(model, tiny_tokenizer, own, texts, heat, seed)
        ended = one.tokens[-1] == tiny_tokenizer.eos_token_id
        assert one.tokens[: len(one.tokens) - ended] == tokens
        assert heard.text in texts and heard.finish == "end" and not heard.fault
        assert [score[1] for score in heard.scores] == pytest.approx(nats, abs=1e-4)


def test_who_has_no_grammar_is_not_touched_by_one(
    compiler: GrammarCompiler, tiny_tokenizer: Any
) -> None:
    free = [held(tiny_tokenizer, None, ignore_end=True) for _ in range(2)]
    other = held(tiny_tokenizer, matcher(compiler, CHOICE))
    answered(tiny_tokenizer, [free[0], other, free[1]], drafts=True)
    assert free[0].tokens == free[1].tokens == alone(tiny(), free[0].prompt, 60)


def test_cut_draws_stay_within_the_grammar(compiler: GrammarCompiler, tiny_tokenizer: Any) -> None:
    sequences = [
        held(tiny_tokenizer, matcher(compiler, CHOICE), draw=Draw(2.0, *cut, random.Random(seed)))
        for seed in range(10)
        for cut in ((0.3, 0), (1.0, 3), (0.9, 2))
    ]
    found = {heard.text for heard in answered(tiny_tokenizer, sequences, drafts=True)}
    assert found <= {*WORDS} and len(found) > 1


def test_stop_texts_and_limits_end_it_as_ever(
    compiler: GrammarCompiler, tiny_tokenizer: Any
) -> None:
    grammar = Grammar("regex", "abcdefgh")
    stopped = held(tiny_tokenizer, matcher(compiler, grammar), stop=("cd",))
    short = held(tiny_tokenizer, matcher(compiler, grammar))
    short.limit = 1
    told = answered(tiny_tokenizer, [stopped, short], drafts=True)
    assert (told[0].text, told[0].finish, told[1].finish) == ("ab", "stop", "length")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "foo"}, "Invalid type"),
        ({"uniqueItems": True, "type": "array"}, "uniqueItems"),
        ({"type": "string", "pattern": "("}, "regex parse"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "minimum"),
    ],
)
def test_what_cannot_be_kept_to_is_told(compiler: GrammarCompiler, schema: Any, words: str) -> None:
    with pytest.raises(GrammarError, match=words):
        matcher(compiler, Grammar.of_schema(schema))


def test_a_grammar_that_grows_too_complex_breaks_its_answer_off_and_no_other(
    compiler: GrammarCompiler, tiny_tokenizer: Any
) -> None:
    late = Grammar.of_schema({"type": "string", "pattern": "^[0-9]{3}(a{1000}){1000}$"})
    sequences = [held(tiny_tokenizer, matcher(compiler, one)) for one in (late, CHOICE)]
    told = answered(tiny_tokenizer, sequences, drafts=True)
    assert told[0].fault and not told[0].finish
    assert told[1].text in WORDS
