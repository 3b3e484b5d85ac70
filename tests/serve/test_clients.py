"""What clients of OpenAI's and of vLLM's API send and look for, beside the answers themselves."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from laura import __version__
from laura.results.errors import UsageError
from laura.serve.settings import ServeSettings
from tests.serve.houses import BASE, House, build, key, listening, tenant, until

HELLO = [{"role": "user", "content": "hello you"}]
SITE = "https://app.example"
PREFLIGHT = {
    "origin": SITE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


def chat(house: House, **fields: Any) -> httpx.Response:
    body = {"model": BASE, "messages": HELLO, "temperature": 0, **fields}
    return house.request("POST", "/v1/chat/completions", body)


def last_line(house: House) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(house.log.getvalue().splitlines()[-1])
    return found


def test_fields_that_change_nothing_change_nothing(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    plain = chat(house).json()
    message = {**HELLO[0], "name": "ann", "type": "text", "cache_control": {"type": "ephemeral"}}
    more = {"repetition_penalty": 1.0, "min_p": 0, "top_k": -1, "stop_token_ids": [], "user": "u"}
    answer = chat(house, messages=[message], **more).json()
    assert answer["choices"] == plain["choices"] and answer["usage"] == plain["usage"]
    first, second = house.engine.asked
    assert (first.prompt, first.top_k) == (second.prompt, second.top_k) == (first.prompt, 0)


def test_the_official_client_sends_vllms_fields(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    with (
        listening(house) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        ask: Any = {"model": BASE, "messages": [{**HELLO[0], "name": "ann"}], "max_tokens": 9}
        client.chat.completions.create(**ask, extra_body={"ignore_eos": True, "min_tokens": 3})
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**ask, extra_body={"repetition_penalty": 1.2})
    assert refused.value.param == "repetition_penalty"
    asked = house.engine.asked[0]
    assert (asked.ignore_end, asked.min_new_tokens) == (True, 3)


def test_a_stream_may_tell_its_usage_all_along(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    options = {"include_usage": True, "continuous_usage_stats": True}
    told = chat(house, stream=True, stream_options=options).text.split("\n\n")[:-2]
    usages = [json.loads(one.removeprefix("data: "))["usage"] for one in told]
    counts = [one["completion_tokens"] for one in usages]
    assert counts == sorted(counts) and usages[-1] == chat(house).json()["usage"]


def test_a_prompt_of_several_answers_is_counted_once(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    usage = chat(house, n=4).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 1}
    assert last_line(house)["cached_tokens"] == 1
    body = {"model": BASE, "prompt": ["a b", "c"], "n": 3}
    usage = house.request("POST", "/v1/completions", body).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 99}, {"messages": [{**HELLO[0], "content": "a " * 500}]}]
)
def test_an_overflow_is_told_in_openais_words(micro_tokenizer: Any, fields: Any) -> None:
    """litellm, and DSPy through it, know it by them."""
    house = build(micro_tokenizer, engine={"context_tokens": 90})
    error = chat(house, **fields).json()["error"]
    assert "This model's maximum context length is 90 tokens" in error["message"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_the_log_says_which_field_was_refused(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    for fields, param in (
        ({"min_p": 0.1}, "min_p"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"max_tokens": 10_000}, "messages"),
        ({"sk-laura-secret": 1}, "other"),
        ({"a whole prompt": 1}, "other"),
        ({}, None),
    ):
        chat(house, **fields)
        assert last_line(house)["param"] == param
    assert "secret" not in house.log.getvalue() and "whole" not in house.log.getvalue()


def test_health_and_version_as_vllm_tells_them(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*"))
    health = house.request("GET", "/health")
    assert (health.status_code, health.content) == (200, b"")
    assert house.request("GET", "/version").json() == {"version": __version__}
    house.engine.ready = False
    assert house.request("GET", "/health").status_code == 503


def test_head_is_answered_like_get_without_a_body(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*"))
    for path, status in (
        ("/", 200), ("/v1/models", 200), ("/health", 200), ("/metrics", 403), ("/x", 404),
        ("/v1/completions", 405),
    ):  # fmt: skip
        got, headed = (house.request(one, path, headers=key("ann")) for one in ("GET", "HEAD"))
        assert headed.status_code == got.status_code == status
        assert headed.content == b"" and last_line(house)["method"] == "HEAD"
        assert (
            headed.headers["content-type" if got.content else "content-length"]
            == (got.headers["content-type" if got.content else "content-length"])
        )
    assert house.request("HEAD", "/v1/models").status_code == 401
    with listening(house) as url, httpx.Client(base_url=url, headers=key("ann")) as client:
        assert client.head("/v1/models").content == b""
        assert client.get("/v1/models").json()["object"] == "list"


def test_models_say_how_much_they_read(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, engine={"context_tokens": 90})
    found = house.request("GET", "/v1/models").json()["data"]
    assert {one["max_model_len"] for one in found} == {90} and len(found) > 1


def test_texts_and_conversations_are_tokenized_as_they_are_answered(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    chat(house)
    house.request("POST", "/v1/completions", {"model": BASE, "prompt": "a b"})
    for body, asked in zip(
        ({"messages": HELLO}, {"prompt": "a b"}), house.engine.asked, strict=True
    ):
        told = house.request("POST", "/tokenize", {"model": BASE, **body}).json()
        assert told == {
            "count": len(asked.prompt), "max_model_len": 512, "tokens": list(asked.prompt)
        }  # fmt: skip
    plain = {"prompt": "a b", "add_special_tokens": False}
    expected = micro_tokenizer.encode("a b", add_special_tokens=False)
    assert house.request("POST", "/tokenize", plain).json()["tokens"] == expected
    assert len(house.engine.asked) == 2


def test_tokens_cost_a_request_and_are_bounded_like_a_chat(micro_tokenizer: Any) -> None:
    ann = tenant("ann", "maths", requests_per_minute=6, tokens_per_minute=100)
    house = build(micro_tokenizer, ann, body_bytes=5000)
    service, encoded = house.app.state.service, list[str]()
    own = service._prompter._encode
    service._prompter._encode = lambda text, *more, **options: (
        encoded.append(text) or own(text, *more, **options)
    )

    def ask(body: Any, **headers: str) -> tuple[int, str]:
        answer = house.request("POST", "/tokenize", body, headers=headers)
        return answer.status_code, answer.json().get("error", {}).get("code", "")

    assert ask({"prompt": "a"}) == (401, "invalid_api_key")
    assert ask({"prompt": "a"}, **key("ann")) == (200, "") and encoded == ["a"]
    assert ask({"prompt": "a", "model": "law"}, **key("ann")) == (404, "model_not_found")
    assert ask({"prompt": "a" * 6000}, **key("ann")) == (413, "body_too_large")
    assert ask({"prompt": "word " * 900}, **key("ann")) == (400, "more_than_limit")
    assert ask({"prompt": 5}, **key("ann"))[0] == 400
    accounts = service.limits.accounts
    accounts.admit("a", "ann")
    accounts.reserve("a", 100)
    assert ask({"prompt": "a"}, **key("ann")) == (429, "rate_limit_exceeded")
    accounts.settle("a", 0)
    assert ask({"prompt": "a"}, **key("ann")) == (429, "rate_limit_exceeded") and encoded == ["a"]
    until(lambda: not house.used("ann").running)  # given back a moment after the answer
    usage = house.used("ann")
    assert (usage.running, usage.tokens, usage.tokens_left) == (0, 0, 100)


def test_pages_of_chosen_sites_may_ask(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*"), cors_origins=(SITE,))
    asked = house.request("OPTIONS", "/v1/chat/completions", headers=PREFLIGHT)
    assert asked.status_code == 200 and last_line(house)["method"] == "OPTIONS"
    assert asked.headers["access-control-allow-origin"] == SITE
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
    for who, status in ((key("ann"), 200), ({}, 401)):
        answer = house.request("GET", "/v1/models", headers={"origin": SITE, **who})
        assert answer.status_code == status, "what is refused can be read, too"
        assert answer.headers["access-control-allow-origin"] == SITE
        assert "access-control-allow-credentials" not in answer.headers
    for site in ("https://evil.example", "null", SITE + ".evil.example"):
        assert house.request(
            "OPTIONS", "/v1/models", headers={**PREFLIGHT, "origin": site}
        ).is_error
        answer = house.request("GET", "/v1/models", headers={"origin": site, **key("ann")})
        assert "access-control-allow-origin" not in answer.headers


def test_without_keys_only_chosen_sites_pass(micro_tokenizer: Any) -> None:
    house, shut = build(micro_tokenizer, cors_origins=(SITE,)), build(micro_tokenizer)
    for origin, there, status in ((SITE, house, 200), (SITE, shut, 403), ("https://b", house, 403)):
        answer = there.request("GET", "/v1/models", headers={"origin": origin})
        assert answer.status_code == status
    assert shut.request("OPTIONS", "/v1/models", headers=PREFLIGHT).is_error


@pytest.mark.parametrize("origin", ["*", "app.example", "https://app.example/", "https://A.b", ""])
def test_a_site_is_named_as_browsers_do(origin: str) -> None:
    with pytest.raises(UsageError, match="--cors-origin"):
        ServeSettings(base=BASE, cors_origins=(origin,))
