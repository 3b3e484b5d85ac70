"""Text as it comes against the whole decoded at once."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from laura.engine.detokenizer import Detokenizer, Score, decoder_of


def told(stream: Detokenizer, tokens: list[int]) -> list[str]:
    pieces = []
    for token in tokens:
        stream.add(token)
        if stream.stopped:
            break
        pieces.append(stream.delta().text)
    return [*pieces, stream.rest().text]


@pytest.mark.parametrize("seed", range(4))
def test_pieces_make_up_the_whole(tiny_tokenizer: Any, seed: int) -> None:
    source = random.Random(seed)
    text = "".join(source.choice("ab é漢😀\n the cat😀😀") for _ in range(150))
    tokens = tiny_tokenizer.encode(text)
    pieces = told(Detokenizer(tiny_tokenizer.decode), tokens)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_text_come_out_as_decoded(tiny_tokenizer: Any) -> None:
    source = random.Random(0)
    tokens = [source.randrange(3, 259) for _ in range(200)]
    assert "".join(told(Detokenizer(tiny_tokenizer.decode), tokens)) == tiny_tokenizer.decode(
        tokens
    )


@pytest.mark.parametrize("stop", [["on a"], [" mat", "on a mat and"], ["漢!", "z", "!!"], ["é"]])
def test_nothing_of_a_stop_text_is_told(tiny_tokenizer: Any, stop: list[str]) -> None:
    text = "the cat sat on é a mo on! 漢 !the on a mat and the dog"
    tokens = tiny_tokenizer.encode(text)
    # The one that is complete first ends the answer.
    ends = [text.find(one) + len(one) for one in stop if one in text]
    seen = text[: min(ends, default=len(text))]
    expected = min((seen[: seen.find(one)] for one in stop if one in seen), key=len, default=seen)
    stream = Detokenizer(tiny_tokenizer.decode, stop)
    assert "".join(told(stream, tokens)) == expected
    assert stream.stopped == bool(ends)


def test_scores_come_with_the_text_they_complete(tiny_tokenizer: Any) -> None:
    text = "the cat é漢 sat on a mat"
    tokens = tiny_tokenizer.encode(text)
    for stop in ([], ["on a"]):
        stream, seen, so_far = Detokenizer(tiny_tokenizer.decode, stop), list[Score](), ""
        for number, token in enumerate(tokens):
            stream.add(token, (token, -float(number), ()))
            news = stream.rest() if stream.stopped else stream.delta()
            so_far += news.text
            seen += news.scores
            assert len(tiny_tokenizer.decode([t for t, _, _ in seen])) <= len(so_far) + 4
            if stream.stopped:
                break
        seen += stream.rest().scores
        count = len(seen) if stop else len(tokens)
        assert [score[0] for score in seen] == tokens[:count]
        assert tiny_tokenizer.decode([score[0] for score in seen]).startswith(
            text.split("on a")[0] if stop else text
        )
        assert not stop or "mat" not in tiny_tokenizer.decode([score[0] for score in seen])


def test_the_short_way_to_decode_gives_transformers_text(tiny_tokenizer: Any) -> None:
    source, decode = random.Random(0), decoder_of(tiny_tokenizer)
    for length in (0, 1, 2, 3, 9, 40, 40, 40):
        tokens = [source.randrange(len(tiny_tokenizer)) for _ in range(length)]
        expected = tiny_tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert decode(tokens) == expected

    class Louder(PreTrainedTokenizerFast):  # type: ignore[misc]
        def _decode(self, *given: Any, **more: Any) -> str:
            return str(super()._decode(*given, **more)).upper()

    loud = Louder(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    assert decoder_of(loud)(tiny_tokenizer.encode("the cat")) == "THE CAT"
