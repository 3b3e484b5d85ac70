"""A tenant sees nothing of another's: attempts in a table, all answered like a name at random."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from laura.serve.tenant_changes import replace
from tests.serve.houses import ADMIN, BASE, House, build, file_of, key, tenant

pytestmark = pytest.mark.usefixtures("engines")
UNKNOWN = "zzz-unknown"
# Ann may use "maths" and names that begin with "team-a-"; "poems" and "team-b-1" are Bob's.
ATTEMPTS = [
    "poems", "POEMS", "Poems", "poems ", " poems", "poems\u0000", "poems/", "/poems", "./poems",
    "../poems", "maths/../poems", "maths/../../a/poems", "maths\\..\\poems", "poem", "poemsx:",
    "team-b-1", "team-", "team-a", "TEAM-A-1", "team-a-1/../team-b-1", "%70oems", "poems%00",
    "ｐｏｅｍｓ", "poëms", f"{BASE}/poems", f"{BASE}:poems", "*", "team-a-*", "team-a-missing",
    "maths,poems", "broken", "None", "null", "base", "x" * 256,
]  # fmt: skip


def house_of_two(micro_tokenizer: Any, **options: Any) -> House:
    from tests.serve.houses import FakeLibrary

    return build(
        micro_tokenizer,
        tenant("ann", "maths", "team-a-*"),
        tenant("bob", "poems", "team-b-*", "broken", base=False),
        library=FakeLibrary("maths", "poems", "team-a-1", "team-b-1", refused="broken"),
        **options,
    )


def exchange(
    house: House, who: str, method: str, path: str, body: Any = None
) -> tuple[int, bytes, dict[str, str]]:
    response = house.request(method, path, body, headers=key(who))
    headers = dict(response.headers)
    headers.pop("x-request-id")
    return response.status_code, response.content, headers


def asked(model: str) -> list[tuple[str, str, Any]]:
    chat = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return [
        ("POST", "/v1/chat/completions", chat),
        ("POST", "/v1/chat/completions", {**chat, "stream": True}),
        ("POST", "/v1/completions", {"model": model, "prompt": "hello"}),
        ("GET", f"/v1/models/{quote(model, safe='')}", None),
    ]


def in_json(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False)[1:-1].encode()


@pytest.mark.parametrize("name", ATTEMPTS)
def test_anothers_adapter_is_as_unknown_as_any(micro_tokenizer: Any, name: str) -> None:
    house = house_of_two(micro_tokenizer)
    for attempt, reference in zip(asked(name), asked(UNKNOWN), strict=True):
        status, body, headers = exchange(house, "ann", *attempt)
        expected_status, expected, expected_headers = exchange(house, "ann", *reference)
        assert status == expected_status == 404
        # The name that was asked for is all that differs; a path tells how it was understood.
        told = json.loads(body)["error"]["message"]
        shown = (
            repr(name) if attempt[0] == "POST" else told.split("The model ")[1].split(" does")[0]
        )
        assert body == expected.replace(in_json(repr(UNKNOWN)), in_json(shown))
        headers.pop("content-length"), expected_headers.pop("content-length")
        assert headers == expected_headers
    assert not house.engine.asked


def test_names_that_are_not_ones_own_are_not_looked_up(micro_tokenizer: Any) -> None:
    """Time cannot tell what is never done."""
    house = house_of_two(micro_tokenizer)
    looked: list[str] = []

    class Watched(frozenset[str]):
        def __contains__(self, name: object) -> bool:
            looked.append(str(name))
            return super().__contains__(name)

    service = house.app.state.service
    service._names = Watched(service._names)
    for name in ("poems", UNKNOWN, "team-b-1"):
        exchange(house, "ann", *asked(name)[0])
    assert looked == []
    exchange(house, "ann", *asked("team-a-9")[0])
    assert looked == ["team-a-9"]


def test_lists_hold_ones_own(micro_tokenizer: Any) -> None:
    house = house_of_two(micro_tokenizer)
    for who, names in (("ann", [BASE, "maths", "team-a-1"]), ("bob", ["poems", "team-b-1"])):
        _, body, _ = exchange(house, who, "GET", "/v1/models")
        assert [one["id"] for one in json.loads(body)["data"]] == names


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer sk-laura-nobody", "Basic sk-laura-ann", "sk-laura-ann",
     "Bearer sk-laura-an", "Bearer sk-laura-ann x", "Bearer SK-LAURA-ANN",
     "Bearer sk-laura-ann\xff", f"Bearer {ADMIN}"],
)  # fmt: skip
def test_keys_that_open_nothing(micro_tokenizer: Any, value: str) -> None:
    house = house_of_two(micro_tokenizer)

    headers = {"authorization": value.encode("latin-1")} if value else {}
    asks = [*asked("maths"), ("GET", "/v1/models", None)]
    answers = [house.request(*one, headers=headers) for one in asks]
    found = [(one.status_code, one.content) for one in answers]
    assert {status for status, _ in found} == {401} and len({body for _, body in found}) == 1
    assert json.loads(found[0][1])["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/admin/state", "/metrics"])
def test_what_is_the_admins(micro_tokenizer: Any, path: str) -> None:
    house = house_of_two(micro_tokenizer)
    assert exchange(house, "ann", "GET", path)[0] == 403
    assert exchange(house, "nobody", "GET", path)[0] == 401
    assert exchange(house, "admin", "GET", path)[0] == 200


@pytest.mark.parametrize("action", ["load", "unload", "pin", "unpin"])
@pytest.mark.parametrize("name", ["maths", "poems", UNKNOWN])
def test_tenants_load_and_unload_nothing(micro_tokenizer: Any, action: str, name: str) -> None:
    house = house_of_two(micro_tokenizer)
    house.engine.slots["poems"] = True
    status, body, _ = exchange(house, "ann", "POST", f"/admin/adapters/{name}/{action}")
    assert status == 403 and name not in body.decode()
    assert house.engine.slots == {"poems": True}


def test_an_expired_key_is_an_unknown_key(micro_tokenizer: Any) -> None:
    from datetime import UTC, datetime

    house = build(micro_tokenizer, tenant("old", "*", expires=datetime(2020, 1, 1, tzinfo=UTC)))
    found = exchange(house, "old", "GET", "/v1/models")
    assert found == exchange(house, "nobody", "GET", "/v1/models")
    assert json.loads(house.log.getvalue().splitlines()[0])["expired_key_of"] == "old"


def test_limits_are_ones_own(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*", requests_per_minute=2), tenant("bob", "*"))
    statuses = [exchange(house, "ann", *asked("maths")[0])[0] for _ in range(3)]
    assert statuses == [200, 200, 429]
    _, body, headers = exchange(house, "ann", *asked("maths")[0])
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(headers["retry-after"]) <= 30
    assert exchange(house, "bob", *asked("maths")[0])[0] == 200


def test_more_than_a_minutes_tokens_is_no_reason_to_try_again(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*", tokens_per_minute=10))
    status, body, headers = exchange(house, "ann", *asked("maths")[0])
    assert status == 400 and "retry-after" not in headers
    assert json.loads(body)["error"]["code"] == "more_than_limit"


def test_what_was_reserved_and_not_used_is_given_back(micro_tokenizer: Any) -> None:
    ann = tenant("ann", "*", tokens_per_minute=1000, concurrent=1)
    house = build(micro_tokenizer, ann)
    status, body, _ = exchange(house, "ann", *asked("maths")[0])
    used = json.loads(body)["usage"]["total_tokens"]
    assert status == 200 and 1000 - house.used("ann").tokens_left in (used, used - 1)
    house.engine.most = 0
    assert exchange(house, "ann", *asked("maths")[0])[0] == 429
    assert exchange(house, "ann", *asked("maths")[0])[0] == 429
    assert house.used("ann").tokens == used and house.used("ann").running == 0


def test_reading_tenants_anew_changes_who_may_what(micro_tokenizer: Any) -> None:
    house = house_of_two(micro_tokenizer)
    service = house.app.state.service
    replace(service.database, file_of(tenant("ann", "poems")))
    service._looked = -1e9  # what it knows is old
    assert exchange(house, "ann", *asked("poems")[0])[0] == 200
    assert exchange(house, "ann", *asked("maths")[0])[0] == 404
    assert exchange(house, "bob", "GET", "/v1/models")[0] == 401


def test_same_bytes_for_names_of_one_length(micro_tokenizer: Any) -> None:
    house = house_of_two(micro_tokenizer)
    for there, missing in (("poems", "poemz"), ("team-b-1", "team-b-9"), ("broken", "brokem")):
        for one, other in zip(asked(there), asked(missing), strict=True):
            found, expected = exchange(house, "ann", *one), exchange(house, "ann", *other)
            assert found[0] == expected[0] and found[2] == expected[2]
            assert found[1] == expected[1].replace(missing.encode(), there.encode())


def test_a_tenant_without_the_base(micro_tokenizer: Any) -> None:
    house = house_of_two(micro_tokenizer)
    assert exchange(house, "bob", *asked(BASE)[0])[0] == 404
    assert exchange(house, "bob", *asked("poems")[0])[0] == 200
