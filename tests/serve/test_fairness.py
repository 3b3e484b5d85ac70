"""The fair queue against shares worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from laura.serve.limits import FairQueue, QueueFull


def serve(queue: FairQueue[str], rounds: int, cost: int = 10) -> list[str]:
    """Serve so many items, each refilled at once; whose they were."""
    served = []
    for number in range(rounds):
        item = next(queue.in_order())
        tenant = item.split("-")[0]
        queue.remove(item, tenant)
        queue.charge(tenant, cost)
        queue.put(f"{tenant}-more{number}", tenant, PRIORITIES.get(tenant, 1.0), cost)
        served.append(tenant)
    return served


PRIORITIES = {"paid": 3.0}


def test_a_flood_does_not_delay_the_others() -> None:
    queue: FairQueue[str] = FairQueue(1000, 500)
    for number in range(400):
        queue.put(f"flood-{number}", "flood", 1.0, 10)
    queue.put("small-1", "small", 1.0, 10)
    counts = Counter(serve(queue, 100))
    assert abs(counts["flood"] - counts["small"]) <= 1


def test_priority_is_a_share() -> None:
    queue: FairQueue[str] = FairQueue(1000, 500)
    for tenant in ("paid", "free"):
        for number in range(5):
            queue.put(f"{tenant}-{number}", tenant, PRIORITIES.get(tenant, 1.0), 10)
    counts = Counter(serve(queue, 400))
    assert counts["paid"] / counts["free"] == pytest.approx(3, abs=0.1)


def test_idling_earns_no_credit() -> None:
    queue: FairQueue[str] = FairQueue(1000, 500)
    queue.put("busy-0", "busy", 1.0, 10)
    serve(queue, 50)
    queue.put("late-0", "late", 1.0, 10)
    counts = Counter(serve(queue, 20))
    assert counts == {"busy": 10, "late": 10}


def test_bounds_and_the_estimate_of_waiting() -> None:
    queue: FairQueue[str] = FairQueue(3, 2)
    assert queue.seconds_until_room(100, False) == 1
    items = ["a-1", "a-2", "b-1"]
    queue.put(items[0], "a", 1.0, 100)
    queue.put(items[1], "a", 1.0, 300)
    with pytest.raises(QueueFull) as full:
        queue.put("a-3", "a", 1.0, 100)
    assert full.value.tenants_own
    queue.put(items[2], "b", 1.0, 200)
    with pytest.raises(QueueFull) as full:
        queue.put("c-1", "c", 1.0, 100)
    assert not full.value.tenants_own
    assert queue.seconds_until_room(50, False) == 4
    assert queue.seconds_until_room(50, True) == 8
    assert queue.seconds_until_room(0.1, False) == 60
    for item in items:
        assert queue.remove(item, item[0])
    assert len(queue) == 0 and queue.waiting() == {}
