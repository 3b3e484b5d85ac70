"""Who is next: a queue that is fair between tenants by the tokens they were served. No torch.

Every tenant has a counter of tokens served, divided by its priority; the waiting tenant with
the lowest counter is next, first come first served within it. A tenant that comes back after
a pause starts at the lowest counter of those who wait: idling earns no credit.

Source: Sheng et al. 2024, arXiv:2401.00588, algorithm 2 (virtual token counter). A prompt's
token and a new token weigh the same here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 60.0


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
