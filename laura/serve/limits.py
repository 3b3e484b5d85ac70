"""What tenants share: how much each may ask, and who is next.

`Limits`: token buckets a minute deep, and places at the same time. A bucket of L a minute holds
L at most, begins full and fills by L / 60 a second. Hence in any stretch of T seconds no more than
L (1 + T / 60) is taken out of it. All is whole numbers (millionths of a second, and 60 million
parts of a request or token), so nothing is lost to rounding but the clock's own fractions of a
millionth: the time to wait is exact to a millionth of a second.

`FairQueue`: every tenant has a counter of tokens served, divided by its priority; the waiting
tenant with the lowest counter is next, first come first served within it. A tenant that comes
back after a pause starts at the lowest counter of those who wait: idling earns no credit.

Source: Sheng et al. 2024, arXiv:2401.00588, algorithm 2 (virtual token counter). A prompt's
token and a new token weigh the same here.

No locks: all calls come from one thread, the event loop's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from laura.serve.auth import Tenant, Tenants
from laura.serve.schemas import ApiError

Which = Literal["requests", "tokens", "concurrent"]
TICKS = 10**6
"""Ticks of a second."""
PARTS = 60 * TICKS
"""Parts of one request or token: a bucket of L a minute fills by L parts a tick."""
CONCURRENT_RETRY_SECONDS = 1.0
"""When one place of many will be free, nobody knows; asking once a second harms nobody."""
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 60.0

Item = TypeVar("Item")


class LimitError(ApiError):
    """A tenant's limit is reached.

    Args:
        which: The limit; where several are, the one that takes longest.
        limit: What it is: a minute's requests or tokens, or how many at the same time.
        retry_after: Seconds until the same would be admitted if nothing else was meanwhile;
            None where it never will be, since it is more than a minute's tokens.
    """

    def __init__(self, which: Which, limit: int, retry_after: float | None) -> None:
        what = f"{limit:,} {which} per minute"
        if which == "concurrent":
            what = f"{limit:,} requests at the same time"
        if retry_after is None:
            # Trying again never helps, and clients try again after a 429.
            message = f"this asks for more than your limit of {what}; ask for fewer tokens"
            super().__init__(400, message, "more_than_limit", "max_tokens")
        else:
            message = f"your limit of {what} is reached; try again in {retry_after:.3g} seconds"
            super().__init__(429, message, "rate_limit_exceeded", retry_after=retry_after)
        self.which, self.limit = which, limit


@dataclass(frozen=True)
class Usage:
    """What a tenant has used since the server started.

    Attributes:
        running: Requests that are admitted and not settled.
        requests: Requests admitted, those that were then refused for their tokens included.
        refused: Requests refused.
        tokens: Tokens of prompts and answers, of settled requests.
        requests_left: Requests that would be admitted now; None: no limit.
        tokens_left: Tokens that would be admitted now; None: no limit. Below 0 where more
            was used than reserved.
    """

    running: int = 0
    requests: int = 0
    refused: int = 0
    tokens: int = 0
    requests_left: int | None = None
    tokens_left: int | None = None


class Bucket:
    """A token bucket; times are ticks, see the module.

    Args:
        limit: What flows in each minute, and what it holds.
        now: The moment from which it fills.
    """

    def __init__(self, limit: int, now: int) -> None:
        self.limit, self._level, self._at = limit, limit * PARTS, now

    def wait(self, amount: int, now: int) -> int | None:
        """Ticks until it holds an amount; None where it never can."""
        self._fill(now)
        if amount > self.limit:
            return None
        # Rounded up: a tick earlier it holds too little.
        return max(0, -((self._level - amount * PARTS) // self.limit))

    def take(self, amount: int, now: int) -> None:
        """Take an amount out, also more than it holds; below 0, give it back."""
        self._fill(now)
        self._level = min(self._level - amount * PARTS, self.limit * PARTS)

    def left(self, now: int) -> int:
        """Whole units in it; below 0 while it is overdrawn."""
        self._fill(now)
        return self._level // PARTS

    def change(self, limit: int, now: int) -> None:
        """Give it another limit; what was used of the old one is used of the new one.

        Where the new limit is below what was used, it is empty: a minute's rest is enough,
        however much more was allowed before.
        """
        self._fill(now)
        used = self.limit * PARTS - self._level
        self._level = max(limit * PARTS - used, min(self._level, 0))
        self.limit = limit

    def _fill(self, now: int) -> None:
        # A clock that went backwards takes nothing away.
        passed = max(0, now - self._at)
        self._level = min(self._level + passed * self.limit, self.limit * PARTS)
        self._at = max(self._at, now)


@dataclass
class _Account:
    """What is known of one tenant."""

    buckets: dict[Which, Bucket] = field(default_factory=dict)
    concurrent: int | None = None
    running: int = 0
    admitted: int = 0
    refused: int = 0
    used: int = 0

    def take_over(self, tenant: Tenant, now: int) -> None:
        """The limits that a tenant has now; what was used stays used."""
        limits: tuple[tuple[Which, int | None], ...] = (
            ("requests", tenant.requests_per_minute),
            ("tokens", tenant.tokens_per_minute),
        )
        for which, limit in limits:
            if limit is None:
                self.buckets.pop(which, None)
            elif which in self.buckets:
                self.buckets[which].change(limit, now)
            else:
                self.buckets[which] = Bucket(limit, now)
        self.concurrent = tenant.concurrent

    def refuse(self, amounts: dict[Which, int], now: int, whole: int = 0) -> None:
        """Raise for the limit that is in the way, the longest of several.

        Args:
            amounts: What shall be taken out of the buckets.
            now: In ticks.
            whole: All tokens of the request, some of which may have been taken before.
        """
        refusals: list[LimitError] = []
        for which in amounts.keys() & self.buckets.keys():
            bucket = self.buckets[which]
            ticks = None if whole > bucket.limit else bucket.wait(amounts[which], now)
            if ticks != 0:
                seconds = None if ticks is None else ticks / TICKS
                refusals.append(LimitError(which, bucket.limit, seconds))
        if refusals:
            self.refused += 1
            raise max(
                refusals, key=lambda one: math.inf if one.retry_after is None else one.retry_after
            )

    def left(self, which: Which, now: int) -> int | None:
        """Whole units in a bucket; None without one."""
        return self.buckets[which].left(now) if which in self.buckets else None


@dataclass(eq=False)
class Admission:
    """A request that was let in; `Limits.settle` ends it.

    Attributes:
        tokens: What is reserved for it.
    """

    _account: _Account = field(repr=False)
    tokens: int = 0
    _settled: bool = False


class Limits:
    """Keeps every tenant within their limits.

    Args:
        clock: Seconds that never go backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def admit(self, tenant: Tenant) -> Admission:
        """Let a request in, before any of it is read; it counts, whatever becomes of it.

        Raises:
            LimitError: a limit is reached, or all tokens are used up; then it does not count.
        """
        now = self._now()
        account = self._account(tenant, now)
        account.refuse({"requests": 1, "tokens": 0}, now)
        if account.concurrent is not None and account.running >= account.concurrent:
            account.refused += 1
            raise LimitError("concurrent", account.concurrent, CONCURRENT_RETRY_SECONDS)
        if "requests" in account.buckets:
            account.buckets["requests"].take(1, now)
        account.running += 1
        account.admitted += 1
        return Admission(account)

    def reserve(self, admission: Admission, tokens: int) -> None:
        """Reserve tokens for a request, instead of what was reserved so far, until it is settled.

        Args:
            admission: What `admit` gave.
            tokens: What it comes to as far as is known: first the least, by the length of its
                prompts, then the most, prompts and answers together.

        Raises:
            LimitError: there are not so many.
        """
        assert tokens >= 0, "the server checks what clients ask for"
        now, account = self._now(), admission._account
        account.refuse({"tokens": tokens - admission.tokens}, now, tokens)
        if "tokens" in account.buckets:
            account.buckets["tokens"].take(tokens - admission.tokens, now)
        admission.tokens = tokens

    def settle(self, admission: Admission, tokens_used: int) -> None:
        """End a request: free its place, give back what it did not use, charge what it used more.

        A second call changes nothing, so every way a request can end may call it.

        Args:
            admission: What `admit` gave.
            tokens_used: Tokens of its prompt and answer; 0 where it was not answered.
        """
        assert tokens_used >= 0, "engines count from 0"
        if admission._settled:
            return
        admission._settled = True
        account = admission._account
        account.running -= 1
        account.used += tokens_used
        if "tokens" in account.buckets:
            account.buckets["tokens"].take(tokens_used - admission.tokens, self._now())

    def usage(self, tenant: Tenant) -> Usage:
        """What a tenant has used."""
        now = self._now()
        account = self._account(tenant, now)
        return Usage(
            running=account.running,
            requests=account.admitted,
            refused=account.refused,
            tokens=account.used,
            requests_left=account.left("requests", now),
            tokens_left=account.left("tokens", now),
        )

    def update(self, tenants: Tenants) -> None:
        """Take over the limits of tenants that were read again; what was used stays used.

        Tenants that are gone are forgotten, once nothing of theirs is running.
        """
        now = self._now()
        for name, account in list(self._accounts.items()):
            tenant = tenants.get(name)
            if tenant is not None:
                account.take_over(tenant, now)
            elif not account.running:
                del self._accounts[name]

    def _account(self, tenant: Tenant, now: int) -> _Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = _Account()
            account.take_over(tenant, now)
        return account

    def _now(self) -> int:
        return round(self._clock() * TICKS)


class QueueFull(Exception):
    """No more can wait; its text is for the client.

    Args:
        tenants_own: Whether it is the tenant's own share that is full.
    """

    def __init__(self, tenants_own: bool) -> None:
        whose = "of your requests" if tenants_own else "requests"
        super().__init__(f"too many {whose} wait already; try again later")
        self.tenants_own = tenants_own


@dataclass(frozen=True)
class _Waiting(Generic[Item]):
    item: Item
    tokens: int


class FairQueue(Generic[Item]):
    """Items that wait, by tenant.

    Args:
        most: Most items that wait.
        most_per_tenant: Most items of one tenant that wait.
    """

    def __init__(self, most: int, most_per_tenant: int) -> None:
        self.most, self.most_per_tenant = most, most_per_tenant
        self._queues: dict[str, dict[int, _Waiting[Item]]] = {}
        self._served: dict[str, float] = {}
        self._priority: dict[str, float] = {}
        self._last = 0.0  # counter of the tenant that left the queue last
        self._count = self._tokens = 0

    def __len__(self) -> int:
        return self._count

    def put(self, item: Item, tenant: str, priority: float, tokens: int) -> None:
        """Let an item wait.

        Args:
            item: What waits.
            tenant: Whose it is.
            priority: The tenant's share against others; above 0.
            tokens: How many tokens it may cost, for the estimate of waiting.

        Raises:
            QueueFull: there is no place.
        """
        own = self._queues.get(tenant, {})
        if len(own) >= self.most_per_tenant or self._count >= self.most:
            raise QueueFull(len(own) >= self.most_per_tenant)
        if tenant not in self._queues:
            others = [self._served[other] for other in self._queues]
            lowest = min(others) if others else self._last
            self._served[tenant] = max(self._served.get(tenant, 0.0), lowest)
            self._queues[tenant] = own
        self._priority[tenant] = priority
        own[id(item)] = _Waiting(item, tokens)
        self._count += 1
        self._tokens += tokens

    def in_order(self) -> Iterator[Item]:
        """All that wait, the next one first, as the counters stand now.

        Who takes one out or charges a tenant asks anew: the order may have changed.
        """
        for tenant in sorted(self._queues, key=lambda one: self._served[one]):
            for waiting in self._queues[tenant].values():
                yield waiting.item

    def remove(self, item: Item, tenant: str) -> bool:
        """Take an item out; whether it was there."""
        own = self._queues.get(tenant)
        found = own.pop(id(item), None) if own else None
        if own is None or found is None:
            return False
        self._count -= 1
        self._tokens -= found.tokens
        if not own:
            del self._queues[tenant]
            self._last = self._served[tenant]
        return True

    def charge(self, tenant: str, tokens: int) -> None:
        """Count tokens that a tenant was served."""
        served = self._served.get(tenant, 0.0)
        self._served[tenant] = served + tokens / self._priority.get(tenant, 1.0)

    def waiting(self) -> dict[str, int]:
        """How many items of each tenant wait."""
        return {tenant: len(own) for tenant, own in self._queues.items()}

    def seconds_until_room(self, tokens_per_second: float, tenants_own: bool) -> float:
        """About when the next place becomes free, for Retry-After; whole seconds.

        One item must be served: the mean of those that wait. Where a tenant's own share is
        full, the others that wait are served in between.
        """
        if not self._count or tokens_per_second <= 0:
            return LEAST_RETRY_SECONDS
        seconds = self._tokens / self._count / tokens_per_second
        seconds *= len(self._queues) if tenants_own else 1
        return float(min(max(math.ceil(seconds), LEAST_RETRY_SECONDS), MOST_RETRY_SECONDS))
