"""Admin actions, their audit log, and the numbers for Prometheus."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from laura.results.errors import StoreError
from laura.serve.audit import BEGUN, Audit
from laura.serve.auth import hash_of_key, new_key
from laura.serve.context import MOST_PAIRS, MOST_TENANTS, NONE, Metrics, RequestContext
from laura.serve.database import Database
from laura.serve.tenant_changes import add_key, replace, revoke_key
from tests.serve.houses import BASE, House, build, file_of, key, tenant, until
from tests.serve.test_app import complete

STATE = {
    "ready", "why_not", "slots", "slots_total", "running", "waiting", "tokens_per_second",
    "memory_bytes", "cache_tokens", "drafted_tokens", "engines", "accepted_tokens", "stopping",
    "uptime_seconds", "base", "context_tokens", "adapters", "tenants",
}  # fmt: skip


def admin(house: House, method: str, path: str) -> Any:
    return house.request(method, f"/admin/{path}", headers=key("admin"))


def rows(house: House) -> list[dict[str, Any]]:
    return Audit(house.app.state.service.database).last(1000)


def audited(house: House) -> list[tuple[str, str, str, str]]:
    """How each action ended; every one had its row before."""
    found = rows(house)
    begun, ended = found[::2], found[1::2]
    named = ("action", "actor", "subject", "request")
    for before, after in zip(begun, ended, strict=True):
        assert before["outcome"] == BEGUN != after["outcome"]
        assert [before[key] for key in named] == [after[key] for key in named]
    assert len({row["request"] for row in begun}) == len(begun)
    return [(row["action"], row["actor"], row["subject"], row["outcome"]) for row in ended]


def test_loading_pinning_and_unloading(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann"))
    slots = house.engine.slots
    assert admin(house, "POST", "adapters/maths/load").json() == {
        "adapter": "maths", "pinned": False,
    }  # fmt: skip
    assert slots == {"maths": False}
    admin(house, "POST", "adapters/maths/pin")
    admin(house, "POST", "adapters/maths/load")
    assert slots == {"maths": True}, "loading does not take a pin away"
    admin(house, "POST", "adapters/maths/unpin")
    assert slots == {"maths": False}
    assert admin(house, "POST", "adapters/maths/unpin").status_code == 400
    assert admin(house, "POST", "adapters/maths/unload").json()["unloaded"] is True
    assert admin(house, "POST", "adapters/maths/unload").json()["unloaded"] is False
    assert admin(house, "POST", "adapters/nothing/load").status_code == 404
    assert admin(house, "POST", "adapters/broken/load").status_code == 400
    admin(house, "POST", "adapters/law/pin")
    admin(house, "POST", "adapters/poems/pin")
    full = admin(house, "POST", "adapters/maths/load")
    assert full.status_code == 400 and "every place is pinned" in full.text
    done = audited(house)
    assert done[:2] == [
        ("adapter.load", "admin", "maths", "done"), ("adapter.pin", "admin", "maths", "done"),
    ]  # fmt: skip
    assert ("adapter.load", "admin", "nothing", "refused: model_not_found") in done
    assert done[-1] == ("adapter.load", "admin", "maths", "refused: adapter_refused")
    assert len(done) == 12


def test_what_is_begun_is_on_the_disk_before_it_is_done(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann"))
    seen = []

    async def load(*words: Any) -> None:
        seen.extend(rows(house))
        raise KeyError("a mistake of ours")

    house.engine.load = load  # type: ignore[method-assign]
    assert admin(house, "POST", "adapters/maths/load").status_code == 500
    (before,) = seen
    assert (before["action"], before["subject"], before["outcome"]) == (
        "adapter.load", "maths", BEGUN,
    )  # fmt: skip
    assert audited(house) == [("adapter.load", "admin", "maths", "failed")]
    strangers = house.request("POST", "/admin/adapters/maths/load", headers=key("ann"))
    assert strangers.status_code == 403 and len(rows(house)) == 2


def test_nothing_is_done_that_cannot_be_written_down(
    micro_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, status, told, slots in (
        (0, 503, "nothing is done: the disk is full", {}),
        (1, 500, "adapter.pin maths: done; the audit log says only", {"maths": True}),
    ):
        house, left, own = build(micro_tokenizer), [most], Audit.write

        def write(*words: Any, left: list[int] = left, own: Any = own, **more: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise StoreError("the disk is full")
            own(*words, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Audit, "write", write)
            found = house.request("POST", "/admin/adapters/maths/pin")
        assert found.status_code == status and found.json()["error"]["code"] == "audit_failed"
        assert told in found.text and "the disk is full" in found.text
        assert house.engine.slots == slots
        assert [row["outcome"] for row in rows(house)] == [BEGUN] * most


def test_the_state_for_the_page(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", requests_per_minute=5), tenant("bob"))
    house.engine.slots["maths"] = True
    found = admin(house, "GET", "state").json()
    assert set(found) == STATE and found["base"] == BASE
    assert found["slots"] == [{"adapter": "maths", "pinned": True, "in_use": 0, "bytes": 10}]
    assert set(found["tenants"]) == {"ann", "bob"}
    assert found["tenants"]["ann"]["requests_left"] == 5
    refused = {one["name"]: one["refused"] for one in found["adapters"]}
    assert refused["broken"] and refused["maths"] is None


def test_new_adapters_are_there_after_a_rescan(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    del house.library.entries["law"]
    house.library.entries["new"] = house.library.entries["maths"]
    assert house.request("POST", "/admin/adapters/rescan").json() == {
        "adapters": ["broken", "maths", "new", "poems"]
    }
    assert house.library.rescans == 1
    assert complete(house, "a", "law").status_code == 404


def test_changes_are_taken_in_without_a_restart(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann"))
    database = house.app.state.service.database

    def status(name: str) -> int:
        return house.request("GET", "/v1/models", headers=key(name)).status_code

    assert (status("ann"), status("new"), status("admin")) == (200, 401, 401)
    replace(database, file_of(tenant("new", "*")))
    until(lambda: (status("ann"), status("new")) == (401, 200), 1.0)
    made = add_key(database, "new")
    header = {"authorization": f"Bearer {made}"}
    until(lambda: house.request("GET", "/v1/models", headers=header).status_code == 200, 1.0)
    revoke_key(database, "new", hash_of_key(made))
    until(lambda: house.request("GET", "/v1/models", headers=header).status_code == 401, 1.0)
    assert admin(house, "GET", "state").status_code == 200


def test_many_tenants_are_read_beside_the_loop(micro_tokenizer: Any) -> None:
    many = [tenant(f"t{number}", concurrent=8) for number in range(1500)]
    house = build(micro_tokenizer, tenant("ann"))
    replace(house.app.state.service.database, file_of(*many))
    house.app.state.service._looked = -math.inf
    held = [0.0]

    async def ask() -> httpx.Response:
        async with house.client() as client:
            work = asyncio.create_task(client.get("/v1/models", headers=key("t7")))
            while not work.done():
                before = time.perf_counter()
                await asyncio.sleep(0.005)
                held.append(time.perf_counter() - before)
            return await work

    assert asyncio.run(ask()).status_code == 200
    assert max(held) < 0.2


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_numbers_for_prometheus(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer, tenant("ann", "*", requests_per_minute=2))
    body = {"model": "maths", "prompt": "a b", "max_tokens": 2}
    for _ in range(3):
        house.request("POST", "/v1/completions", body, headers=key("ann"))
    house.request("GET", "/v1/models")
    found = samples(house.request("GET", "/metrics", headers=key("admin")).text)
    assert found["laura_requests_total", "maths", "200", "ann"] == 2
    # Refused before its body was read.
    assert found["laura_requests_total", NONE, "429", "ann"] == 1
    assert found["laura_refused_requests_total", "rate_limit_exceeded", "ann"] == 1
    assert found["laura_refused_requests_total", "invalid_api_key", "-"] == 1
    prompt = len(micro_tokenizer.encode("a b"))
    assert found["laura_tokens_total", "maths", "prompt", "ann"] == 2 * prompt
    assert found["laura_tokens_total", "maths", "new", "ann"] == 4
    assert found["laura_first_token_seconds_count", "ann"] == 2
    assert found["laura_request_seconds_count", "ann"] == 2
    assert found["laura_ready",] == 1 and found["laura_slots",] == 2
    assert found["laura_memory_bytes", "weights"] == 1000
    assert found["laura_drafted_tokens_total",] == 40
    assert found["laura_accepted_tokens_total",] == 30
    assert found["laura_dropped_log_lines_total",] == 0


@pytest.mark.parametrize("names", [5 * MOST_PAIRS])
def test_labels_do_not_grow_without_bound(micro_tokenizer: Any, names: int) -> None:
    house = build(micro_tokenizer)
    metrics = Metrics(house.engine.state, lambda: 7)
    for number in range(names):
        who = tenant(f"t{number % (2 * MOST_TENANTS)}")
        metrics.count(RequestContext("POST", "/", tenant=who, adapter=f"a{number}", status=200))
    found = [one for one in samples(metrics.text().decode()) if one[0] == "laura_requests_total"]
    assert len(found) <= MOST_PAIRS + MOST_TENANTS + 1
    assert len({one[3] for one in found}) <= MOST_TENANTS + 1
    assert any(one[1] == "other" for one in found)


def test_names_that_clients_invent_are_no_labels(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    for number in range(20):
        complete(house, "a", f"invented-{number}")
        house.request("GET", f"/invented-{number}")
    assert "invented" not in house.request("GET", "/metrics").text


def test_no_key_and_no_prompt() -> None:
    database = Database()
    key = new_key()
    prompt = "Tell me all about " + "x" * 10_000
    Audit(database).write(f"a {key}", key, f"Bearer {key} {prompt}", f"({key})", key)
    (row,) = Audit(database).last(10)
    assert key[12:] not in str(row) and len(str(row)) < 800


def test_rows_of_several_writers_are_all_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'laura.db'}"

    def write(number: int) -> None:
        audit = Audit(Database(url))
        for count in range(20):
            audit.write("a", str(number), str(count), "x" * 200)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [(row["actor"], row["subject"]) for row in Audit(Database(url)).last(1000)]
    assert sorted(found) == sorted((str(one), str(two)) for one in range(4) for two in range(20))
    assert [row["subject"] for row in Audit(Database(url)).last(2)] == [
        two for _, two in found[-2:]
    ]
