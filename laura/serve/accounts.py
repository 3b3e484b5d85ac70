"""What each tenant has used, in the database, so that gates that share one share the limits.

A tenant's row is locked while a request is let in, reserves tokens or ends, so that every charge
sees all before it, whichever gate it is of. Each request has a row of its own until it ends, with
what is reserved for it: ending it twice, or ending one of which nobody knows whether it was let in,
changes nothing twice.

A gate says every half second that it lives. One that has not for `LEASE_SECONDS` is dead: its
requests' places become free, and what was reserved for them is counted as used.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, insert, or_, select, update

from laura.serve.auth import TenantSettings
from laura.serve.database import (
    ADMISSIONS,
    GATES,
    PATIENCE_SECONDS,
    REVISION,
    TENANTS,
    Database,
    unavailable,
)
from laura.serve.limits import (
    CONCURRENT_RETRY_SECONDS,
    DAY_STEP,
    TICKS,
    Bucket,
    LimitError,
    Usage,
    Which,
)

LEASE_SECONDS = 10
BUCKETS: tuple[tuple[Which, str, Bucket], ...] = (
    ("requests", "requests_per_minute", Bucket(0, 0)),
    ("tokens", "tokens_per_minute", Bucket(0, 0)),
    ("day", "tokens_per_day", Bucket(0, 0, 24 * 60 * 60, DAY_STEP)),
)
"""Each limit, its name among a tenant's settings, and its bucket while nothing flows into it."""

COUNTED = ("at", "requests", "refused", "tokens")
OF_TENANT = TENANTS.c.name == bindparam("tenant")
OF_ADMISSION = ADMISSIONS.c.id == bindparam("admission")
RUNNING = select(func.count()).select_from(ADMISSIONS)
RUNNING_OF_TENANT = RUNNING.where(ADMISSIONS.c.tenant == bindparam("tenant"))
KEEP = update(TENANTS).where(OF_TENANT)
RESERVE = update(ADMISSIONS).where(OF_ADMISSION)
END = delete(ADMISSIONS).where(OF_ADMISSION)


@dataclass
class Account:
    """What is known of one tenant, as its row says while it is locked."""

    settings: dict[str, Any]
    at: int
    buckets: dict[Which, Bucket] = field(default_factory=dict)
    requests: int = 0
    refused: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, row: Row[Any]) -> Account:
        """Of a row of `TENANTS` with the column `now`, up to which its buckets fill."""
        # A clock that went backwards takes nothing away.
        account = cls(row.settings, max(row.at, row.now), {}, row.requests, row.refused, row.tokens)
        for which, setting, kind in BUCKETS:
            if (limit := row.settings.get(setting)) is not None:
                level = row._mapping[f"{which}_level"]
                account.buckets[which] = bucket = replace(kind, limit=limit, level=level)
                bucket.fill(row.at, account.at)
        return account

    def columns(self) -> dict[str, Any]:
        """What its row shall say."""
        row: dict[str, Any] = {name: getattr(self, name) for name in COUNTED}
        for which, _, _ in BUCKETS:
            bucket = self.buckets.get(which)
            row[f"{which}_level"] = None if bucket is None else bucket.level
        return row

    def change(self, settings: TenantSettings) -> None:
        """Take over what is said of the tenant now; what was used stays used."""
        self.settings = settings.model_dump(mode="json", exclude={"keys"}, exclude_defaults=True)
        for which, setting, kind in BUCKETS:
            limit = self.settings.get(setting)
            if limit is None:
                self.buckets.pop(which, None)
            else:
                # One that nothing was taken out of and that held nothing is full afterwards.
                self.buckets.setdefault(which, replace(kind)).change(limit)

    def refusal(self, requests: int, tokens: int, whole: int = 0) -> LimitError | None:
        """The limit that is in the way, the longest of several.

        Args:
            requests: What shall be taken out of the buckets.
            tokens: Likewise.
            whole: All tokens of the request, some of which may have been taken before.
        """
        refusals: list[LimitError] = []
        for which, bucket in self.buckets.items():
            amount, most = (requests, requests) if which == "requests" else (tokens, whole)
            ticks = None if most > bucket.limit else bucket.wait(amount)
            if ticks != 0:
                seconds = None if ticks is None else ticks / TICKS
                refusals.append(LimitError(which, bucket.limit, seconds))
        return max(refusals, key=_seconds, default=None)

    def take(self, requests: int, tokens: int) -> None:
        """Take amounts out of the buckets that there are."""
        for which, bucket in self.buckets.items():
            bucket.take(requests if which == "requests" else tokens)


def _seconds(refusal: LimitError) -> float:
    return math.inf if refusal.retry_after is None else refusal.retry_after


class Accounts:
    """Charges tenants, one transaction each; calls wait for the database.

    Args:
        database: Where the accounts are.

    Attributes:
        gate: Name of this server among those that share the database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.gate = secrets.token_hex(8)
        self._last = self._steady_since = -math.inf
        now = database.now.label("now")
        self._tenants = select(TENANTS, now)
        self._tenant = self._tenants.where(OF_TENANT).with_for_update()
        # Both rows are locked: of two that end a request at once, the second finds it ended.
        self._admission = (
            select(TENANTS, ADMISSIONS.c.tokens.label("reserved"), now)
            .join_from(TENANTS, ADMISSIONS, ADMISSIONS.c.tenant == TENANTS.c.name)
            .where(OF_ADMISSION)
            .with_for_update()
        )
        self._revision = select(REVISION.c.number, now)

    def admit(self, admission: str, tenant: str) -> bool:
        """Let a request in, before any of it is read; it counts, whatever becomes of it.

        Args:
            admission: A name of its own.
            tenant: Whose it is.

        Returns:
            Whether the tenant's tokens are limited.

        Raises:
            LimitError: a limit is reached, or all tokens are used up; then it does not count.
            ApiError: there is no such tenant any more.
            StoreError: as `Database.transaction`.
        """
        with self._database.transaction() as connection:
            given = {"tenant": tenant, **self._database.ticks}
            row = connection.execute(self._tenant, given).one_or_none()
            if row is None:
                raise unavailable()
            account = Account.of(row)
            refusal = account.refusal(1, 0)
            most = account.settings.get("concurrent")
            if refusal is None and most is not None:
                running = connection.execute(RUNNING_OF_TENANT, {"tenant": tenant}).scalar_one()
                if running >= most:
                    refusal = LimitError("concurrent", most, CONCURRENT_RETRY_SECONDS)
            if refusal is None:
                account.take(1, 0)
                account.requests += 1
                new = {"id": admission, "tenant": tenant, "gate": self.gate, "tokens": 0}
                connection.execute(insert(ADMISSIONS), new)
            account.refused += refusal is not None
            connection.execute(KEEP, {"tenant": tenant, **account.columns()})
        if refusal is not None:
            raise refusal
        return not account.buckets.keys() <= {"requests"}

    def reserve(self, admission: str, tokens: int) -> None:
        """Reserve tokens for a request, instead of what was reserved so far, until it is settled.

        Raises:
            LimitError: there are not so many.
            ApiError: the tenant was removed, or this gate was held for dead meanwhile.
            StoreError: as `Database.transaction`.
        """
        with self._database.transaction() as connection:
            given = {"admission": admission, **self._database.ticks}
            row = connection.execute(self._admission, given).one_or_none()
            if row is None:
                raise unavailable()
            account = Account.of(row)
            more = tokens - row.reserved
            refusal = account.refusal(0, more, tokens)
            if refusal is None:
                account.take(0, more)
                connection.execute(RESERVE, {"admission": admission, "tokens": tokens})
            account.refused += refusal is not None
            connection.execute(KEEP, {"tenant": row.name, **account.columns()})
        if refusal is not None:
            raise refusal

    def settle(self, admission: str, tokens_used: int | None) -> None:
        """End a request: free its place, give back what it did not use, charge what it used more.

        A second call changes nothing.

        Args:
            admission: As given to `admit`.
            tokens_used: Tokens of its prompt and answer; None for all that was reserved.

        Raises:
            StoreError: as `Database.transaction`.
        """
        with self._database.transaction() as connection:
            given = {"admission": admission, **self._database.ticks}
            row = connection.execute(self._admission, given).one_or_none()
            connection.execute(END, {"admission": admission})
            if row is not None:
                account = Account.of(row)
                used = row.reserved if tokens_used is None else tokens_used
                account.tokens += used
                account.take(0, used - row.reserved)
                connection.execute(KEEP, {"tenant": row.name, **account.columns()})

    def usage(self) -> dict[str, Usage]:
        """What each tenant has used, by name.

        Raises:
            StoreError: as `Database.transaction`.
        """
        counted = RUNNING.add_columns(ADMISSIONS.c.tenant).group_by(ADMISSIONS.c.tenant)
        with self._database.transaction() as connection:
            running = {tenant: count for count, tenant in connection.execute(counted)}
            rows = connection.execute(self._tenants, self._database.ticks).all()
        found = {}
        for row in sorted(rows, key=lambda one: str(one.name)):
            account = Account.of(row)
            left = {which: bucket.left for which, bucket in account.buckets.items()}
            found[row.name] = Usage(
                running=running.get(row.name, 0),
                requests=row.requests,
                refused=row.refused,
                tokens=row.tokens,
                requests_left=left.get("requests"),
                tokens_left=left.get("tokens"),
                day_left=left.get("day"),
            )
        return found

    def beat(self) -> int:
        """Say that this gate lives, and end the requests of those that do not.

        Only a gate that has itself reached the database for as long as a lease lasts declares
        others dead: else the first one to come back after an outage would find all the others so.

        Returns:
            The number of the last change of tenants or keys.

        Raises:
            StoreError: as `Database.transaction`.
        """
        began = time.monotonic()
        with self._database.transaction() as connection:
            revision, now = connection.execute(self._revision, self._database.ticks).one()
            until = {"until": now + LEASE_SECONDS * TICKS}
            own = update(GATES).where(GATES.c.id == self.gate).values(until)
            if not connection.execute(own).rowcount:
                connection.execute(insert(GATES), {"id": self.gate, **until})
        if began - self._last > LEASE_SECONDS / 3:
            self._steady_since = began
        self._last = began
        if began - self._steady_since > LEASE_SECONDS:
            self._bury(now)
        return int(revision)

    def leave(self) -> None:
        """Take this gate away, with what it still holds.

        Raises:
            StoreError: as `Database.transaction`.
        """
        with self._database.transaction() as connection:
            connection.execute(delete(GATES).where(GATES.c.id == self.gate))
            held = select(ADMISSIONS.c.id).where(ADMISSIONS.c.gate == self.gate)
            left = connection.execute(held).scalars().all()
        for admission in left:
            self.settle(admission, None)

    def _bury(self, now: int) -> None:
        dead = or_(GATES.c.id.is_(None), GATES.c.until < now)
        held = select(ADMISSIONS.c.id).outerjoin(GATES, GATES.c.id == ADMISSIONS.c.gate).where(dead)
        with self._database.transaction() as connection:
            left = connection.execute(held).scalars().all()
            connection.execute(delete(GATES).where(GATES.c.until < now))
        for admission in left:
            self.settle(admission, None)


@dataclass(eq=False)
class Admission:
    """A request that was let in; `Limits.settle` ends it.

    Attributes:
        limited: Whether its tokens are to be reserved.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(12))
    limited: bool = True
    settled: bool = False


class Limits:
    """Keeps every tenant within their limits, while the event loop goes on.

    Args:
        database: Where the accounts are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.accounts = Accounts(database)
        self._settling = set[Future[None]]()
        self._unsettled = deque[tuple[str, int]]()  # threads add to it

    async def admit(self, tenant: str) -> Admission:
        """As `Accounts.admit`.

        Raises:
            LimitError: a limit is reached.
            ApiError: the database does not answer.
        """
        self._database.check()
        admission = Admission()
        future = self._database.submit(self.accounts.admit, admission.id, tenant)
        try:
            admission.limited = await self._database.result(future)
        except LimitError:
            raise
        except BaseException:
            # Whoever asked hears of it no more; it may be let in a moment later all the same.
            future.add_done_callback(lambda done: self.settle(admission, 0))
            raise
        return admission

    async def reserve(self, admission: Admission, tokens: int) -> None:
        """As `Accounts.reserve`.

        Args:
            admission: What `admit` gave.
            tokens: What it comes to as far as is known: first the least, by the length of its
                prompts, then the most, prompts and answers together.

        Raises:
            LimitError: there are not so many.
            ApiError: the database does not answer.
        """
        assert tokens >= 0, "the server checks what clients ask for"
        self._database.check()
        if admission.limited:
            await self._database.run(self.accounts.reserve, admission.id, tokens)

    def settle(self, admission: Admission, tokens_used: int) -> None:
        """As `Accounts.settle`; nobody waits for it, and what fails is done later.

        Args:
            admission: What `admit` gave.
            tokens_used: Tokens of its prompt and answer; 0 where it was not answered.
        """
        assert tokens_used >= 0, "engines count from 0"
        if not admission.settled:
            admission.settled = True
            self._settle(admission.id, tokens_used)

    def settle_left(self) -> None:
        """Settle what failed before, now that the database answers."""
        for _ in range(len(self._unsettled)):
            self._settle(*self._unsettled.popleft())

    def close(self) -> None:
        """Settle what was begun, as far as the database answers, and take this gate away."""
        self.settle_left()
        wait(set(self._settling), PATIENCE_SECONDS)
        wait([self._database.submit(self.accounts.leave)], PATIENCE_SECONDS)

    def _settle(self, admission: str, tokens: int) -> None:
        def done(future: Future[None]) -> None:
            if future.cancelled() or future.exception() is not None:
                self._unsettled.append((admission, tokens))
            self._settling.discard(future)

        future = self._database.submit(self.accounts.settle, admission, tokens)
        self._settling.add(future)
        future.add_done_callback(done)
