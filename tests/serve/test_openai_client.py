"""The official client against a real server on the loopback address."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serve.houses import House, build, key, listening, tenant, until

TEXT = "[maths] <|user|>hello<|end|><|assistant|>"
MESSAGES: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def open_house(micro_tokenizer: Any) -> Iterator[tuple[House, openai.OpenAI]]:
    house = build(micro_tokenizer)
    with listening(house) as url, client_of(url) as client:
        yield house, client


def client_of(url: str, name: str = "nobody") -> openai.OpenAI:
    bearer = key(name)["authorization"].removeprefix("Bearer ")
    return openai.OpenAI(base_url=f"{url}/v1", api_key=bearer, max_retries=0, timeout=20)


def test_chat_as_a_stream(open_house: Any) -> None:
    _, client = open_house
    stream = client.chat.completions.create(
        model="maths", messages=MESSAGES, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens > 3


def test_completions(open_house: Any, micro_tokenizer: Any) -> None:
    _, client = open_house
    answer = client.completions.create(
        model="law", prompt=["a b", "c"], echo=True, logprobs=2, max_tokens=3, temperature=0
    )
    assert [one.text[:3] for one in answer.choices] == ["a b", "c[l"]
    first = answer.choices[0]
    logprobs = first.logprobs
    assert logprobs and logprobs.tokens and logprobs.text_offset and logprobs.token_logprobs
    assert "".join(logprobs.tokens) == first.text
    ends = [*logprobs.text_offset[1:], len(first.text)]
    for token, start, end in zip(logprobs.tokens, logprobs.text_offset, ends, strict=True):
        assert first.text[start:end] == token
    assert logprobs.token_logprobs[0] is None and first.finish_reason == "length"
    ids = micro_tokenizer.encode("a b")
    plain = client.completions.create(model="law", prompt=ids, max_tokens=3, temperature=0)
    assert first.text == "a b" + plain.choices[0].text


def test_errors_are_the_clients_classes(micro_tokenizer: Any) -> None:
    house = build(
        micro_tokenizer, tenant("ann", "maths"), tenant("bob", "*", requests_per_minute=1)
    )
    ask: Any = {"model": "maths", "messages": MESSAGES}
    with listening(house) as url:
        with pytest.raises(openai.AuthenticationError) as wrong_key:
            client_of(url).chat.completions.create(**ask)
        assert wrong_key.value.code == "invalid_api_key"
        ann, bob = client_of(url, "ann"), client_of(url, "bob")
        with pytest.raises(openai.NotFoundError) as unknown:
            ann.chat.completions.create(**{**ask, "model": "law"})
        assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
        with pytest.raises(openai.BadRequestError) as wrong:
            ann.chat.completions.create(**ask, tools=[{"type": "function"}])
        assert wrong.value.param == "tools.0.function"
        with pytest.raises(openai.BadRequestError) as negative:
            ann.chat.completions.create(**ask, max_tokens=-1)
        assert negative.value.param == "max_tokens"
        bob.chat.completions.create(**ask)
        with pytest.raises(openai.RateLimitError) as limited:
            bob.chat.completions.create(**ask)
        assert int(limited.value.response.headers["retry-after"]) > 1
        house.engine.ready = False
        with pytest.raises(openai.InternalServerError) as down:
            ann.chat.completions.create(**ask)
        assert down.value.status_code == 503
        house.engine.ready, house.engine.fail_after = True, 2
        with pytest.raises(openai.APIError, match="try again"):
            list(ann.chat.completions.create(**ask, stream=True))
        for one in (ann, bob):
            one.close()


def test_a_client_that_goes_away_frees_its_place(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, engine={"pause": 0.02})
    long: Any = [{"role": "user", "content": "word " * 200}]
    with listening(house) as url, client_of(url) as client:
        stream = client.chat.completions.create(model="maths", messages=long, stream=True, n=3)
        next(iter(stream))
        until(lambda: len(house.engine.running) == 3)
        stream.close()
        until(lambda: not house.engine.running and len(house.engine.cancelled) == 3)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).chat.completions.create(model="maths", messages=long)
        until(lambda: len(house.engine.cancelled) == 4)
    assert house.used("local").running == 0
    assert '"code": "client_gone"' in house.log.getvalue()


def test_chat(open_house: Any) -> None:
    _, client = open_house
    answer = client.chat.completions.create(
        model="maths", messages=MESSAGES, temperature=0, user="someone", n=2, logprobs=True,
        top_logprobs=1, max_completion_tokens=50, metadata={"a": "b"}, store=False,
    )  # fmt: skip
    assert [one.message.content for one in answer.choices] == [TEXT, TEXT]
    assert answer.usage and answer.usage.total_tokens == (
        answer.usage.prompt_tokens + answer.usage.completion_tokens
    )
    tokens = answer.choices[0].logprobs.content
    assert "".join(one.token for one in tokens) == TEXT
    assert all(one.logprob < 0 and len(one.top_logprobs) == 1 for one in tokens)
    assert answer._request_id and answer._request_id.startswith("req-")
