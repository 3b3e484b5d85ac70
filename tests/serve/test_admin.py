"""Admin actions, their audit log, and the numbers for Prometheus."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from laura.results.errors import StoreError
from laura.serve.admin import BEGUN, Audit
from laura.serve.auth import new_key
from laura.serve.context import MOST_PAIRS, MOST_TENANTS, NONE, Metrics, RequestContext
from tests.serve.houses import BASE, House, build, key, tenant
from tests.serve.test_app import complete

STATE = {
    "ready", "why_not", "slots", "slots_total", "running", "waiting", "tokens_per_second",
    "memory_bytes", "cache_tokens", "drafted_tokens", "engines", "accepted_tokens", "stopping",
    "uptime_seconds", "base", "context_tokens", "adapters", "tenants",
}  # fmt: skip


def admin(house: House, method: str, path: str) -> Any:
    return house.request(method, f"/admin/{path}", headers=key("admin"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def audited(path: Path) -> list[tuple[str, str, str, str]]:
    """How each action ended; every one had its line before."""
    found = rows(path)
    begun, ended = found[::2], found[1::2]
    named = ("action", "actor", "subject", "request")
    for before, after in zip(begun, ended, strict=True):
        assert before["outcome"] == BEGUN != after["outcome"]
        assert [before[key] for key in named] == [after[key] for key in named]
    assert len({row["request"] for row in begun}) == len(begun)
    return [(row["action"], row["actor"], row["subject"], row["outcome"]) for row in ended]


def test_loading_pinning_and_unloading(micro_tokenizer: Any, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    house = build(micro_tokenizer, tenant("ann"), audit=Audit(log))
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
    done = audited(log)
    assert done[:2] == [
        ("adapter.load", "admin", "maths", "done"), ("adapter.pin", "admin", "maths", "done"),
    ]  # fmt: skip
    assert ("adapter.load", "admin", "nothing", "refused: model_not_found") in done
    assert done[-1] == ("adapter.load", "admin", "maths", "refused: adapter_refused")
    assert len(done) == 12 and log.stat().st_mode & 0o777 == 0o600


def test_what_is_begun_is_on_the_disk_before_it_is_done(
    micro_tokenizer: Any, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    house = build(micro_tokenizer, tenant("ann"), audit=Audit(log))
    seen = []

    async def load(*words: Any) -> None:
        seen.extend(rows(log))
        raise KeyError("a mistake of ours")

    house.engine.load = load  # type: ignore[method-assign]
    assert admin(house, "POST", "adapters/maths/load").status_code == 500
    (before,) = seen
    assert (before["action"], before["subject"], before["outcome"]) == (
        "adapter.load", "maths", BEGUN,
    )  # fmt: skip
    assert audited(log) == [("adapter.load", "admin", "maths", "failed")]
    strangers = house.request("POST", "/admin/adapters/maths/load", headers=key("ann"))
    assert strangers.status_code == 403 and len(rows(log)) == 2


class FullDisk(Audit):
    """Takes so many lines."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path)
        self.most = most

    def write(self, *words: str, **facts: Any) -> None:
        self.most -= 1
        if self.most < 0:
            raise StoreError("audit.jsonl: the disk is full")
        super().write(*words, **facts)


def test_nothing_is_done_that_cannot_be_written_down(micro_tokenizer: Any, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    house = build(micro_tokenizer, audit=FullDisk(log, 0))
    found = house.request("POST", "/admin/adapters/maths/pin")
    assert found.status_code == 503 and found.json()["error"]["code"] == "audit_failed"
    assert "nothing is done: audit.jsonl: the disk is full" in found.text
    assert house.engine.slots == {} and not log.exists()
    house = build(micro_tokenizer, audit=FullDisk(log, 1))
    found = house.request("POST", "/admin/adapters/maths/pin")
    assert found.status_code == 500 and found.json()["error"]["code"] == "audit_failed"
    assert "adapter.pin maths: done; the audit log says only that it began" in found.text
    assert house.engine.slots == {"maths": True}
    assert [row["outcome"] for row in rows(log)] == [BEGUN]


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


def test_tenants_are_read_anew_without_a_restart(micro_tokenizer: Any, tmp_path: Path) -> None:
    from laura.serve.auth import hash_of_key
    from tests.serve.houses import ADMIN

    file, log = tmp_path / "tenants.yaml", tmp_path / "audit.jsonl"
    house = build(micro_tokenizer, tenant("ann"), tenants_file=file, audit=Audit(log))
    file.write_text("tenants: [")
    assert admin(house, "POST", "tenants/reload").status_code == 400
    assert house.request("GET", "/v1/models", headers=key("ann")).status_code == 200
    hashes = hash_of_key("sk-laura-new"), hash_of_key(ADMIN)
    file.write_text(
        f"tenants: {{new: {{keys: ['{hashes[0]}'], adapters: ['*']}}}}\n"
        f"admin: {{keys: ['{hashes[1]}']}}\n"
    )
    file.chmod(0o600)
    assert admin(house, "POST", "tenants/reload").json() == {"tenants": ["new"]}
    assert house.request("GET", "/v1/models", headers=key("ann")).status_code == 401
    assert house.request("GET", "/v1/models", headers=key("new")).status_code == 200
    file.write_text(f"tenants: {{old: {{keys: ['{hashes[0]}'], adapters: ['*']}}}}\n")
    refused = admin(house, "POST", "tenants/reload")
    assert refused.status_code == 400 and "has no admin key" in refused.text
    assert f"`laura tenants admin --file {file}`" in refused.text
    assert house.request("GET", "/v1/models", headers=key("new")).status_code == 200
    assert admin(house, "GET", "state").status_code == 200
    ended = [row[3] for row in audited(log)]
    assert ended == ["refused: invalid_value", "done", "refused: invalid_value"]


def test_many_tenants_are_read_beside_the_loop(micro_tokenizer: Any, tmp_path: Path) -> None:
    """Reading 1,500 of them on the loop held every other request up for a second."""
    from laura.serve.auth import hash_of_key
    from tests.serve.houses import ADMIN

    file = tmp_path / "tenants.yaml"
    many = [f"  t{n}: {{keys: [{hash_of_key(str(n))}], concurrent: 8}}\n" for n in range(1500)]
    file.write_text(f"tenants:\n{''.join(many)}admin: {{keys: [{hash_of_key(ADMIN)}]}}\n")
    file.chmod(0o600)
    house = build(micro_tokenizer, tenant("ann"), tenants_file=file)
    held = [0.0]

    async def reload() -> httpx.Response:
        async with house.client() as client:
            path = "/admin/tenants/reload"
            work = asyncio.create_task(client.post(path, headers=key("admin")))
            while not work.done():
                before = time.perf_counter()
                await asyncio.sleep(0.005)
                held.append(time.perf_counter() - before)
            return await work

    start = time.perf_counter()
    assert len(asyncio.run(reload()).json()["tenants"]) == 1500
    assert max(held) < (time.perf_counter() - start) / 3


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


def test_no_key_and_no_prompt(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    key = new_key()
    prompt = "Tell me all about " + "x" * 10_000
    Audit(path).write(f"a {key}", key, f"Bearer {key} {prompt}", f"({key})", key)
    text = path.read_text()
    assert key[12:] not in text and len(text) < 800


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"action": "adapt')
    Audit(path).write("a", "b", "c", "d")
    cut, whole = path.read_text().splitlines()
    assert cut == '{"action": "adapt' and json.loads(whole)["action"] == "a"


def test_lines_of_several_writers_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    def write(number: int) -> None:
        for count in range(20):
            Audit(path).write("a", str(number), str(count), "x" * 200)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {(row["actor"], row["subject"]) for row in rows(path)}
    assert found == {(str(one), str(two)) for one in range(4) for two in range(20)}


def test_what_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="not the kind of file"):
        Audit(tmp_path).write("a", "b", "c", "d")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        Audit(link).write("a", "b", "c", "d")
    assert not (tmp_path / "elsewhere").exists()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="disk is full"):
            Audit(tmp_path / "audit.jsonl").write("a", "b", "c", "d")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: len(line) - 1)
        with pytest.raises(StoreError, match="disk is full"):
            Audit(tmp_path / "audit.jsonl").write("a", "b", "c", "d")
