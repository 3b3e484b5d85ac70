"""The routes over a fake engine: answers, refusals, and what the log tells of them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import httpx
import pytest

from laura.serve.app import PAGE, page_response
from laura.serve.engines import EngineError
from tests.serve import houses
from tests.serve.houses import BASE, House, build, key, tenant, until

pytestmark = pytest.mark.usefixtures("engines")
HELLO = [{"role": "user", "content": "hello you"}]


def chat(house: House, model: str = BASE, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": HELLO, "temperature": 0, **fields}
    return house.request("POST", "/v1/chat/completions", body)


def complete(house: House, prompt: Any, model: str = BASE, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "temperature": 0, **fields}
    return house.request("POST", "/v1/completions", body)


def error(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def lines(house: House) -> list[dict[str, Any]]:
    return [json.loads(line) for line in house.log.getvalue().splitlines()]


def test_models_are_the_base_and_the_adapters_that_are_not_refused(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    found = house.request("GET", "/v1/models").json()["data"]
    assert [one["id"] for one in found] == [BASE, "law", "maths", "poems"]
    assert [one["parent"] for one in found] == [None, BASE, BASE, BASE]
    assert house.request("GET", "/v1/models/maths").json() == found[2]
    refused = house.request("GET", "/v1/models/broken")
    assert refused.status_code == 400 and error(refused)["code"] == "adapter_refused"


def test_a_base_whose_name_has_a_slash(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    object.__setattr__(house.app.state.service.settings, "base", "owner/name")
    assert house.request("GET", "/v1/models/owner/name").json()["id"] == "owner/name"


def test_no_path_sends_a_client_elsewhere(micro_tokenizer: Any) -> None:
    """A redirect would take its place from the host header, and key and prompt along."""
    house = build(micro_tokenizer, tenant("ann", "*"))
    known = {*house.app.openapi()["paths"], "/", "/static/index.html", "/openapi.json"}
    paths = {re.sub("{.*?}", "maths", path) for path in known} | {"/static", "/v1", "/admin", "/x"}
    codes = set()
    for path in {f"{one.rstrip('/')}{end}" for one in paths for end in ("", "/", "//")}:
        for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS"):
            for who in ({}, key("ann"), key("admin")):
                headers = {"host": "evil.example", **who}
                answer = house.request(method, path or "/", {"prompt": "secret"}, headers=headers)
                assert not answer.is_redirect and "location" not in answer.headers, (method, path)
                codes.add(answer.status_code)
    assert codes == {200, 400, 401, 403, 404, 405, 413}


def test_a_conversation_is_answered_by_the_named_adapter(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    answer = chat(house, "maths").json()
    text = "[maths] <|user|>hello you<|end|><|assistant|>"
    assert answer["choices"][0]["message"]["content"] == text
    assert answer["choices"][0]["finish_reason"] == "stop"
    asked = house.engine.asked[0]
    assert (asked.adapter, asked.tenant, asked.temperature) == ("maths", "local", 0.0)
    new = len(micro_tokenizer.encode(text))
    assert answer["usage"] == {
        "prompt_tokens": len(asked.prompt),
        "completion_tokens": new,
        "total_tokens": len(asked.prompt) + new,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert answer["system_fingerprint"].startswith("laura-f00d")


def test_a_stream_says_what_a_whole_answer_says(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    wanted = {"n": 2, "logprobs": True, "top_logprobs": 2, "seed": 4, "temperature": 1.0}
    whole = chat(house, "poems", **wanted).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = chat(house, "poems", **wanted, **options)
    assert response.headers["content-type"].startswith("text/event-stream")
    *data, last = [one.removeprefix("data: ") for one in response.text.split("\n\n") if one]
    assert last == "[DONE]"
    chunks = [json.loads(one) for one in data]
    *told, usage = chunks
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    for index, choice in enumerate(whole["choices"]):
        mine = [one for c in told for one in c["choices"] if one["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert (
            "".join(one["delta"].get("content", "") for one in mine)
            == (choice["message"]["content"])
        )
        scores = [s for one in mine if one["logprobs"] for s in one["logprobs"]["content"]]
        assert scores == choice["logprobs"]["content"]
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == ["stop"]


def test_every_answer_has_a_seed_of_its_own(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    complete(house, ["a b c", "d e f"], n=2, seed=7, temperature=1)
    assert [ask.seed for ask in house.engine.asked] == [7, 8, 7, 8]
    complete(house, "a b c", seed=-1, temperature=1)
    assert house.engine.asked[-1].seed == 2**63 - 1
    chat(house, temperature=1)
    chat(house, temperature=1)
    assert house.engine.asked[-1].seed != house.engine.asked[-2].seed
    assert len({ask.id for ask in house.engine.asked}) == len(house.engine.asked)


def test_choices_of_many_prompts_come_in_order(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    answer = complete(house, ["one", "two", "three"], model="law", n=2, max_tokens=50).json()
    assert [one["index"] for one in answer["choices"]] == list(range(6))
    texts = [one["text"] for one in answer["choices"]]
    assert texts == [f"[law] {word}" for word in ("one", "two", "three") for _ in "ab"]


def test_default_lengths_are_openais_and_what_is_left(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, engine={"context_tokens": 100}, default_new_tokens=60)
    complete(house, "a")
    chat(house)
    chat(house, max_completion_tokens=3)
    prompt = len(house.engine.asked[1].prompt)
    assert [ask.max_new_tokens for ask in house.engine.asked] == [16, min(60, 100 - prompt), 3]
    complete(house, [5] * 95)
    assert house.engine.asked[-1].max_new_tokens == 5


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_tokens": 99}, "prompt", "context_length_exceeded"),
        ({"max_tokens": 41}, "max_tokens", "invalid_value"),
        ({"prompt": [5] * 100}, "prompt", "context_length_exceeded"),
        ({"prompt": [5] * 51}, "prompt", "context_length_exceeded"),
        ({"prompt": ["a"] * 9, "n": 15}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"temperature": 1e-9}, "temperature", "invalid_value"),
        ({"tools": [{}]}, "tools", "unsupported_value"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ],
)
def test_what_cannot_be_meant(
    micro_tokenizer: Any, fields: dict[str, Any], param: str, code: str
) -> None:
    house = build(micro_tokenizer, engine={"context_tokens": 90}, prompt_tokens=50, new_tokens=40)
    response = complete(house, **{"prompt": "a b", **fields})
    assert response.status_code == 400
    assert (error(response)["param"], error(response)["code"]) == (param, code)
    assert not house.engine.asked


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (EngineError("full", "full", 2.2), 429, "queue_full"),
        (EngineError("dead", "gone"), 503, "engine_gone"),
        (EngineError("does not fit", "adapter"), 400, "adapter_refused"),
        (EngineError("nonsense", "request"), 400, "invalid_value"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_before_it_begins(
    micro_tokenizer: Any, raised: EngineError, status: int, code: str, stream: bool
) -> None:
    house = build(micro_tokenizer, engine={"fail_after": 0, "error": lambda: raised})
    response = chat(house, stream=stream)
    assert (response.status_code, error(response)["code"]) == (status, code)
    assert response.headers.get("retry-after") == ("3" if status == 429 else None) or status == 503
    assert not house.engine.running


@pytest.mark.parametrize("raised", [EngineError("it died; try again", "gone"), KeyError("our bug")])
def test_an_engine_that_fails_in_the_middle(
    micro_tokenizer: Any, raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(raised, KeyError):
        monkeypatch.setattr(houses, "BEHIND", None)  # what it tells then is no message
    house = build(micro_tokenizer, engine={"fail_after": 3, "error": lambda: raised})
    whole, ours = chat(house), isinstance(raised, KeyError)
    assert whole.status_code == (500 if ours else 503) and "our bug" not in whole.text
    assert ("our bug" in house.log.getvalue()) == ours
    response = chat(house, stream=True)
    assert response.status_code == 200
    *_, last = [one for one in response.text.split("\n\n") if one]
    told = json.loads(last.removeprefix("data: "))["error"]
    assert told["code"] == ("server_error" if ours else "engine_gone")
    assert "[DONE]" not in response.text and "our bug" not in response.text
    assert lines(house)[-1]["code"] == told["code"] and not house.engine.running


def test_a_full_queue_takes_all_or_nothing(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, engine={"most": 2, "pause": 0.01})
    response = chat(house, n=3)
    assert response.status_code == 429 and response.headers["retry-after"] == "3"
    until(lambda: not house.engine.running and len(house.engine.cancelled) == 2)
    assert chat(house, n=2).status_code == 200


def test_an_engine_that_is_not_ready(micro_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(houses, "BEHIND", None)  # a pool waits for it
    house = build(micro_tokenizer, engine={"ready": False})
    for response in (house.request("GET", "/readyz"), chat(house)):
        assert response.status_code == 503 and error(response)["code"] == "not_ready"
        assert "it is loading" in error(response)["message"]
        assert int(response.headers["retry-after"]) >= 1
    assert house.request("GET", "/healthz").status_code == 200
    house.engine.ready = True
    assert house.request("GET", "/readyz").status_code == 200


def test_an_answer_that_takes_too_long(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, engine={"pause": 30.0}, request_seconds=0.5)
    response = chat(house)
    assert (response.status_code, error(response)["code"]) == (504, "timeout")
    # The client is told first; an engine behind a pool hears of it a moment later.
    until(lambda: not house.engine.running and len(house.engine.cancelled) == 1)


def test_a_stream_in_which_nothing_happens_shows_that_it_lives(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, engine={"pause": 0.05, "end_after": 2}, heartbeat_seconds=0.01)
    text = chat(house, stream=True).text
    assert ": still working\n\n" in text and text.endswith("data: [DONE]\n\n")


def test_the_log_has_numbers_and_names_only(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*"))
    body = {"model": "maths", "messages": [{"role": "user", "content": "secret words"}]}
    house.request("POST", "/v1/chat/completions", body, headers=key("ann"))
    house.request("GET", "/v1/models", headers={"authorization": "Bearer sk-laura-wrong"})
    first, second = lines(house)
    assert (first["tenant"], first["adapter"], first["status"]) == ("ann", "maths", 200)
    assert first["new_tokens"] > 0 and first["finish"] == ["stop"] and first["ms"] > 0
    assert (second["tenant"], second["status"], second["code"]) == ("-", 401, "invalid_api_key")
    for secret in ("secret", "words", "sk-laura"):
        assert secret not in house.log.getvalue()


def test_who_wants_the_same_adapter_waits_for_one_reading(micro_tokenizer: Any) -> None:
    house, calls = build(micro_tokenizer), list[str]()
    real = house.library.open

    def slow(name: str) -> Any:
        calls.append(name)
        time.sleep(0.3)
        return real(name)

    house.library.open = slow  # type: ignore[method-assign]

    async def many() -> list[int]:
        async with house.client() as client:
            body = {"model": "maths", "prompt": "a"}
            asked = [client.post("/v1/completions", json=body) for _ in range(8)]
            return [one.status_code for one in await asyncio.gather(*asked)]

    assert asyncio.run(many()) == [200] * 8 and calls == ["maths"]


def test_the_page_and_what_it_needs(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann"))
    page = house.request("GET", "/")
    assert (
        page.status_code == 200 and "script-src 'self'" in page.headers["content-security-policy"]
    )
    assert house.request("GET", "/static/page.css").headers["content-type"].startswith("text/css")
    for name in ("nothing.js", "../app.py", "..%2fapp.py", "%2e%2e/app.py", ""):
        assert house.request("GET", f"/static/{name}").status_code == 404


def test_the_index_with_its_type_and_policy() -> None:
    found = page_response()
    assert found is not None and found.status_code == 200
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert found.body == (PAGE / "index.html").read_bytes()
    policy = dict(part.strip().split(" ", 1) for part in found.headers[POLICY].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in found.headers[POLICY]
    assert found.headers["x-content-type-options"] == "nosniff"


POLICY = "content-security-policy"


@pytest.mark.parametrize(
    "name", ["", "nothing.js", "../app.py", "/etc/passwd", "page.js/", "PAGE.JS", ".."]
)
def test_only_its_own_files_are_served(name: str) -> None:
    assert page_response(name) is None


def test_the_page_keeps_its_policy() -> None:
    """No code or style in the markup, no way from a text to HTML, no address elsewhere."""
    markup = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script>", markup)
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), path.name
