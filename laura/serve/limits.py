"""What tenants share: how much each may ask, and who is next.

`Bucket`: token buckets a minute or a day deep. A bucket of L a minute holds L at most, begins full
and fills by L / 60 a second. Hence in any stretch of T seconds no more than L (1 + T / 60) is taken
out of it; of one of L a day, no more than L (1 + T / 86,400). All is whole numbers (steps of a
millionth of a second, or of a thousandth for a day, and as many parts of a request or token as a
minute or a day has steps), so nothing is lost to rounding: the time to wait is exact to a step.
`laura/serve/accounts.py` keeps them.

`FairQueue`: every tenant has a counter of tokens served, divided by its priority; the waiting
tenant with the lowest counter is next, first come first served within it. A tenant that comes
back after a pause starts at the lowest counter of those who wait: idling earns no credit.
No locks: all calls come from one thread, the event loop's.

Source: Sheng et al. 2024, arXiv:2401.00588, algorithm 2 (virtual token counter). A prompt's
token and a new token weigh the same here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from laura.serve.schemas import ApiError

Which = Literal["requests", "tokens", "day", "concurrent"]
TICKS = 10**6
"""Ticks of a second."""
DAY_STEP = 1000
"""Ticks of a step of a day's bucket: with a tick, 10**10 tokens would not fit into 64 bits."""
CONCURRENT_RETRY_SECONDS = 1.0
"""When one place of many will be free, nobody knows; asking once a second harms nobody."""
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 60.0

Item = TypeVar("Item")


class LimitError(ApiError):
    """A tenant's limit is reached.

    Args:
        which: The limit; where several are, the one that takes longest.
        limit: What it is: a minute's requests or tokens, a day's tokens, or how many at the same
            time.
        retry_after: Seconds until the same would be admitted if nothing else was meanwhile;
            None where it never will be, since it is more than all that there can be.
    """

    def __init__(self, which: Which, limit: int, retry_after: float | None) -> None:
        what = f"{limit:,} {which} per minute"
        if which == "day":
            what = f"{limit:,} tokens per day"
        elif which == "concurrent":
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
    """What a tenant has used since it was added, through all gates.

    Attributes:
        running: Requests that are admitted and not settled.
        requests: Requests admitted, those that were then refused for their tokens included.
        refused: Requests refused.
        tokens: Tokens of prompts and answers, of settled requests.
        requests_left: Requests that would be admitted now; None: no limit.
        tokens_left: Tokens that would be admitted now by the limit a minute; None: no limit. Below
            0 where more was used than reserved.
        day_left: Likewise by the limit a day.
    """

    running: int = 0
    requests: int = 0
    refused: int = 0
    tokens: int = 0
    requests_left: int | None = None
    tokens_left: int | None = None
    day_left: int | None = None


@dataclass
class Bucket:
    """A token bucket; see the module.

    Attributes:
        limit: What flows in each minute or day, and what it holds.
        level: What is in it, in parts; below 0 while it is overdrawn.
        seconds: Of a minute, or of a day.
        step: Ticks of a step.
    """

    limit: int
    level: int
    seconds: int = 60
    step: int = 1

    @property
    def parts(self) -> int:
        """Parts of one request or token: L parts flow in at each step."""
        return self.seconds * TICKS // self.step

    def fill(self, begin: int, end: int) -> None:
        """Let flow in what belongs to the ticks between two moments."""
        steps = end // self.step - begin // self.step
        self.level = min(self.level + steps * self.limit, self.limit * self.parts)

    def wait(self, amount: int) -> int | None:
        """Ticks until it holds an amount; None where it never can."""
        if amount > self.limit:
            return None
        # Rounded up: a step earlier it holds too little.
        return max(0, -((self.level - amount * self.parts) // self.limit)) * self.step

    def take(self, amount: int) -> None:
        """Take an amount out, also more than it holds; below 0, give it back."""
        self.level = min(self.level - amount * self.parts, self.limit * self.parts)

    @property
    def left(self) -> int:
        """Whole units in it; below 0 while it is overdrawn."""
        return self.level // self.parts

    def change(self, limit: int) -> None:
        """Give it another limit; what was used of the old one is used of the new one.

        Where the new limit is below what was used, it is empty: a minute's (or day's) rest is
        enough, however much more was allowed before.
        """
        used = self.limit * self.parts - self.level
        self.level = max(limit * self.parts - used, min(self.level, 0))
        self.limit = limit


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
