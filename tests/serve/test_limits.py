"""Limits against a naive simulation in fractions, and what they promise in any stretch of time."""

from __future__ import annotations

import functools
import itertools
import math
import secrets
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from laura.serve.accounts import Accounts
from laura.serve.auth import LOCAL, Tenant
from laura.serve.database import ADMISSIONS, Database
from laura.serve.limits import DAY_STEP, TICKS, LimitError, Usage
from laura.serve.schemas import ApiError
from laura.serve.tenant_changes import replace
from tests.serve.houses import file_of

MICROSECOND = Fraction(1, TICKS)


class Clock:
    """Seconds that a test sets."""

    def __init__(self, start: float = 1000.0) -> None:
        self.seconds = start

    def __call__(self) -> float:
        return self.seconds


class Asked:
    """A request that was let in, with what is reserved for it."""

    def __init__(self, tenant: str) -> None:
        self.tenant, self.id, self.tokens = tenant, secrets.token_hex(8), 0


@functools.cache
def database() -> Database:
    """To make one takes longer than most of the tests."""
    return Database(clock=lambda: Limits.clock())


class Limits:
    """Accounts in memory, charged by two gates in turn; of one test at a time."""

    clock = Clock()

    def __init__(self, clock: Clock, *tenants: Tenant) -> None:
        Limits.clock = clock
        with database().transaction() as connection:
            connection.execute(delete(ADMISSIONS))
        self.gates = itertools.cycle([Accounts(database()), Accounts(database())])
        self.update()
        self.update(*tenants)

    def update(self, *tenants: Tenant) -> None:
        replace(database(), file_of(*tenants))

    def admit(self, tenant: Tenant) -> Asked:
        asked = Asked(tenant.name)
        next(self.gates).admit(asked.id, tenant.name)
        return asked

    def reserve(self, asked: Asked, tokens: int) -> None:
        next(self.gates).reserve(asked.id, tokens)
        asked.tokens = tokens

    def settle(self, asked: Asked, tokens: int) -> None:
        next(self.gates).settle(asked.id, tokens)

    def usage(self, tenant: Tenant) -> Usage:
        return next(self.gates).usage()[tenant.name]


def let_in(limits: Limits, tenant: Tenant, tokens: int) -> Asked:
    """As the server does: one that is refused for its tokens has ended, and counts."""
    admission = limits.admit(tenant)
    try:
        limits.reserve(admission, tokens)
    except LimitError:
        limits.settle(admission, 0)
        raise
    return admission


class Naive:
    """A bucket that is filled in exact seconds, and finds its waiting time by trying."""

    def __init__(self, limit: int, seconds: int = 60) -> None:
        self.limit, self.level, self.seconds = limit, Fraction(limit), seconds

    def sleep(self, seconds: Fraction) -> None:
        more = seconds * self.limit / self.seconds
        self.level = min(Fraction(self.limit), self.level + more)

    def take(self, amount: int) -> None:
        self.level = min(Fraction(self.limit), self.level - amount)

    def enough_after(self, amount: int, seconds: Fraction) -> bool:
        more = seconds * self.limit / self.seconds
        return min(Fraction(self.limit), self.level + more) >= amount


steps = st.lists(
    st.tuples(
        st.sampled_from(["sleep", "admit", "settle"]),
        st.integers(0, 90 * TICKS),
        st.integers(0, 60),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(
    steps,
    st.integers(1, 50),
    st.none() | st.integers(1, 200),
    st.integers(1, 10),
    st.integers(1, 4),
)
def test_equal_to_a_naive_simulation(
    steps: list[tuple[str, int, int]],
    per_minute: int,
    per_day: int | None,
    requests: int,
    concurrent: int,
) -> None:
    clock = Clock()
    tenant = Tenant(
        name="a",
        tokens_per_minute=per_minute,
        tokens_per_day=per_day,
        requests_per_minute=requests,
        concurrent=concurrent,
    )
    limits = Limits(clock, tenant)
    asked, tokens = Naive(requests), [Naive(per_minute)]
    if per_day is not None:
        tokens.append(Naive(per_day, 24 * 60 * 60))
    running: list[Asked] = []
    start, ticks = 1000 * TICKS, 0
    for kind, pause, amount in steps:
        if kind == "sleep":
            if per_day is not None:
                pause -= pause % DAY_STEP  # a day's bucket fills by the millisecond
            ticks += pause
            clock.seconds = (start + ticks) / TICKS
            for bucket in (asked, *tokens):
                bucket.sleep(pause * MICROSECOND)
        elif kind == "settle" and running:
            admission = running.pop(pause % len(running))
            limits.settle(admission, amount)
            limits.settle(admission, 10**9)
            for bucket in tokens:
                bucket.take(amount - admission.tokens)
        elif kind == "admit":
            enters = asked.level >= 1 and len(running) < concurrent
            enters = enters and all(bucket.level >= 0 for bucket in tokens)
            fits = enters and all(bucket.level >= amount for bucket in tokens)
            try:
                running.append(let_in(limits, tenant, amount))
                assert fits
                for bucket in tokens:
                    bucket.take(amount)
            except LimitError as refusal:
                assert not fits
                check_retry(refusal, tokens, asked, amount if enters else 0, enters)
            asked.take(enters)
        used = limits.usage(tenant)
        assert used.running == len(running)
        left = [used.tokens_left, used.day_left][: len(tokens)]
        assert left == [math.floor(bucket.level) for bucket in tokens]
        assert used.requests_left == math.floor(asked.level)


def check_retry(
    refusal: LimitError, tokens: list[Naive], asked: Naive, amount: int, entered: bool
) -> None:
    """After the time that is told the buckets hold enough; a step before, they do not."""
    if any(amount > bucket.limit for bucket in tokens):
        assert refusal.which in ("tokens", "day") and refusal.retry_after is None
        return
    assert refusal.retry_after is not None

    def enough(ticks: int) -> bool:
        seconds = ticks * MICROSECOND
        enough = all(bucket.enough_after(amount, seconds) for bucket in tokens)
        return enough and asked.enough_after(1 - entered, seconds)

    ticks = round(refusal.retry_after * TICKS)
    assert enough(ticks)
    if refusal.which != "concurrent":
        assert not enough(ticks - (DAY_STEP if refusal.which == "day" else 1))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 100), st.floats(0, 1)), max_size=60),
    st.integers(1, 100),
    st.floats(0, 1e9),
)
def test_no_stretch_of_time_gives_more_than_is_allowed(
    asks: list[tuple[float, int, float]], per_minute: int, start: float
) -> None:
    clock = Clock(start)
    tenant = Tenant(name="a", tokens_per_minute=per_minute)
    limits = Limits(clock, tenant)
    used: list[tuple[float, int]] = []
    for pause, amount, share in asks:
        clock.seconds += pause
        try:
            admission = let_in(limits, tenant, amount)
        except LimitError as refusal:
            if refusal.retry_after is None:
                continue
            # Who waits as told is let in; this clock has fractions of a millionth.
            clock.seconds += refusal.retry_after + 2e-6
            admission = let_in(limits, tenant, amount)
        limits.settle(admission, int(share * amount))
        used.append((clock.seconds, int(share * amount)))
    for first, (begin, _) in enumerate(used):
        total = 0
        for end, amount in used[first:]:
            total += amount
            assert total <= per_minute * (1 + (end - begin + 1e-4) / 60)


def test_what_is_refused_uses_up_no_tokens_and_a_request_only_once_it_was_read() -> None:
    tenant = Tenant(name="a", requests_per_minute=4, tokens_per_minute=100, concurrent=2)
    limits = Limits(Clock(), tenant)
    running = let_in(limits, tenant, 60)
    for tokens, retry in ((60, 12), (101, None)):
        with pytest.raises(LimitError) as refusal:
            let_in(limits, tenant, tokens)
        assert (refusal.value.which, refusal.value.retry_after) == ("tokens", retry)
    second = limits.admit(tenant)
    with pytest.raises(LimitError) as refusal:
        limits.admit(tenant)
    assert refusal.value.which == "requests"
    for one in (running, second):
        limits.settle(one, 0)
    used = limits.usage(tenant)
    assert (used.requests_left, used.tokens_left, used.running) == (0, 100, 0)
    assert (used.requests, used.refused) == (4, 3)


def test_what_is_known_later_takes_the_place_of_what_was_reserved() -> None:
    tenant = Tenant(name="a", tokens_per_minute=100)
    limits = Limits(Clock(), tenant)
    admission = limits.admit(tenant)
    for tokens in (40, 70, 60):
        limits.reserve(admission, tokens)
        assert limits.usage(tenant).tokens_left == 100 - tokens
    with pytest.raises(LimitError):
        limits.reserve(admission, 101)
    limits.settle(admission, 5)
    assert limits.usage(tenant).tokens_left == 95


def test_who_has_used_more_than_they_may_is_not_read_at_all() -> None:
    tenant = Tenant(name="a", tokens_per_minute=60)
    limits = Limits(clock := Clock(), tenant)
    limits.settle(let_in(limits, tenant, 10), 90)
    with pytest.raises(LimitError) as refusal:
        limits.admit(tenant)
    assert refusal.value.retry_after == 30
    clock.seconds += 30
    limits.admit(tenant)


def test_a_clock_that_goes_backwards_takes_nothing() -> None:
    clock = Clock()
    tenant = Tenant(name="a", tokens_per_minute=60)
    limits = Limits(clock, tenant)
    let_in(limits, tenant, 60)
    for seconds in (990.0, 1000.0, 1001.0):
        clock.seconds = seconds
        limits.usage(tenant)
    assert limits.usage(tenant).tokens_left == 1


@pytest.mark.parametrize(
    ("before", "used", "after", "left"),
    [(100, 40, 100, 60), (100, 40, 200, 160), (100, 40, 50, 10), (100, 40, 20, 0), (10, 0, 5, 5)],
)
def test_another_limit_keeps_what_was_used(before: int, used: int, after: int, left: int) -> None:
    def tenant(limit: int) -> Tenant:
        return Tenant(name="a", tokens_per_minute=limit)

    limits = Limits(Clock(), tenant(before))
    limits.settle(let_in(limits, tenant(before), used), used)
    limits.update(tenant(after))
    assert limits.usage(tenant(after)).tokens_left == left
    assert limits.usage(tenant(after)).tokens == used


def test_a_change_lifts_and_sets_limits() -> None:
    tenant = Tenant(name="a", tokens_per_minute=10, concurrent=1)
    limits = Limits(Clock(), tenant)
    free = Tenant(name="a")
    running = let_in(limits, tenant, 10)
    limits.update(free)
    others = [let_in(limits, free, 100) for _ in range(3)]
    limits.update(tenant)
    with pytest.raises(LimitError, match="1 requests at the same time"):
        let_in(limits, tenant, 1)
    for one in (running, *others):
        limits.settle(one, 1)
    assert limits.usage(tenant).running == 0


def test_a_tenant_that_is_gone_is_let_in_no_more_and_begins_anew() -> None:
    tenant = Tenant(name="a", concurrent=2)
    limits = Limits(Clock(), tenant)
    running = let_in(limits, tenant, 1)
    limits.update()
    with pytest.raises(ApiError) as refused:
        limits.admit(tenant)
    assert refused.value.status == 503  # until the gate has looked again; then 401
    with pytest.raises(ApiError):
        limits.reserve(running, 2)
    limits.settle(running, 1)
    limits.update(tenant)
    assert limits.usage(tenant) == Usage()


def test_tenants_do_not_share() -> None:
    one, other = (Tenant(name=name, tokens_per_minute=10, concurrent=1) for name in "ab")
    limits = Limits(Clock(), one, other, LOCAL)
    let_in(limits, one, 10)
    let_in(limits, other, 10)
    for _ in range(100):
        let_in(limits, LOCAL, 10**9)
    assert limits.usage(LOCAL).running == 100
