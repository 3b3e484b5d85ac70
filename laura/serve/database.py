"""Where tenants, what they used and the audit log lie: a file of SQLite, or PostgreSQL.

One gate keeps them in a file; several gates share a PostgreSQL. No password stands in a URL, which
everybody sees who lists processes: libpq takes it from PGPASSWORD or from the file that PGPASSFILE
names.

    tenants     a row each: what was said of it, and what it has used
    keys        SHA-256 of each key, and whose it is; nobody's is the admin's
    revision    one number, higher after each change of the two above
    gates       the servers that live, each until it should have said so again
    admissions  requests that were let in and have not ended, with what is reserved for them
    audit       admin actions
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    cast,
    create_engine,
    event,
    extract,
    func,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from laura.results.errors import MissingExtraError, StoreError, UsageError
from laura.results.store import disk_faults
from laura.serve.limits import TICKS
from laura.serve.schemas import ApiError

T = TypeVar("T")

SQLITE, POSTGRESQL = "sqlite", "postgresql+psycopg"
PATIENCE_SECONDS = 2.0
"""So long a request waits for the database."""
THREADS = 8
"""Connections of a gate to PostgreSQL; SQLite writes one after another anyway."""
MIGRATION_LOCK = 0x6C61757261  # "laura"
# A machine that is gone is noticed in some ten seconds, whether it had answered or not; a gate that
# is stopped in the midst of a transaction holds a tenant's row not for long.
POSTGRESQL_ARGUMENTS = {
    "connect_timeout": 2,
    "tcp_user_timeout": 5000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "application_name": "laura",
    "client_encoding": "utf8",  # also where the database has none
    "options": "-c statement_timeout=5s -c idle_in_transaction_session_timeout=5s",
}
SQLITE_PRAGMAS = ("journal_mode=WAL", "foreign_keys=ON")

METADATA = MetaData()
TENANTS = Table(
    "tenants",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("settings", JSON, nullable=False),  # of `TenantSettings`, without the keys
    Column("requests_level", BigInteger),  # of the buckets, in parts; NULL: no limit
    Column("tokens_level", BigInteger),
    Column("day_level", BigInteger),
    Column("at", BigInteger, nullable=False),  # when they were filled, in ticks
    Column("requests", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)
KEYS = Table(
    "keys",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("tenant", String(128), ForeignKey(TENANTS.c.name, ondelete="CASCADE")),
    Column("place", Integer, nullable=False),
)
REVISION = Table("revision", METADATA, Column("number", BigInteger, primary_key=True))
GATES = Table(
    "gates",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("until", BigInteger, nullable=False),  # in ticks
)
ADMISSIONS = Table(
    "admissions",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(128), nullable=False, index=True),
    Column("gate", String(32), nullable=False),
    Column("tokens", BigInteger, nullable=False),
)
AUDIT = Table(
    "audit",
    METADATA,
    Column("id", BigInteger().with_variant(Integer(), SQLITE), primary_key=True),
    Column("time", String(32), nullable=False),
    Column("action", String(200), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("outcome", String(200), nullable=False),
    Column("request", String(200)),
)


class Database:
    """A database whose tables are those of this version.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://USER@HOST/NAME`; None keeps all in memory,
            for a server that nobody needs a key for.
        new: Whether a file may be made.
        clock: Seconds; by default PostgreSQL's own, so that gates need not agree on the time.

    Attributes:
        name: How it is called; no password.
        why_not: Why requests are refused; None where it answers.

    Raises:
        UsageError: no such URL.
        MissingExtraError: the driver is not installed.
        StoreError: it cannot be reached, or is a newer version's.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        new: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        where = None if url is None else _checked(url)
        self.name = "in memory" if where is None else str(where)
        self.why_not: str | None = None
        if where is not None and where.drivername == SQLITE:
            _check_file(Path(where.database or ""), self.name, new)
        self._engine = _engine(where)
        weakref.finalize(self, self._engine.dispose)
        self._durable = self._engine.execution_options(durable=True)
        self._postgresql = self._engine.dialect.name == "postgresql"
        self._clock = clock or time.time
        own = self._postgresql and clock is None
        self.now: ColumnElement[int] = (
            cast(func.floor(extract("epoch", func.clock_timestamp()) * TICKS), BigInteger)
            if own
            else bindparam("now", type_=BigInteger)
        )
        self._threads = ThreadPoolExecutor(
            THREADS if self._postgresql else 1, thread_name_prefix="laura-database"
        )
        self._migrate()

    @property
    def ticks(self) -> dict[str, int]:
        """The parameter that statements with `now` need."""
        return {"now": round(self._clock() * TICKS)}

    @contextmanager
    def transaction(self, durable: bool = False) -> Iterator[Connection]:
        """A transaction, carried out whole at the end, or not at all.

        Args:
            durable: Whether it is on the disk afterwards also where the power goes. Else a file
                of SQLite may lose the last ones, never a part of one; PostgreSQL loses none.

        Raises:
            StoreError: the database cannot be reached, is locked for long, or its disk is full.
        """
        try:
            with (self._durable if durable else self._engine).begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the database {self.name} fails: {_reason(error)}") from error

    def submit(self, work: Callable[..., T], *given: Any) -> Future[T]:
        """Begin work in a thread of its own: the event loop never waits for a database."""
        return self._threads.submit(work, *given)

    async def result(self, future: Future[T]) -> T:
        """What came of work.

        Raises:
            ApiError: 503; the database did not answer in time, or failed (its cause says why).
        """
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE_SECONDS)
        except TimeoutError:
            raise unavailable() from StoreError(f"the database {self.name} does not answer")
        except StoreError as error:
            raise unavailable() from error

    async def run(self, work: Callable[..., T], *given: Any) -> T:
        """Both: `submit` and `result`."""
        return await self.result(self.submit(work, *given))

    def check(self) -> None:
        """Refuse at once what needs a database that does not answer.

        Raises:
            ApiError: 503.
        """
        if self.why_not is not None:
            raise unavailable()

    def close(self) -> None:
        """Let it go; nothing is begun any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._engine.dispose()

    def _migrate(self) -> None:
        """Bring its tables to this version; another gate that starts at once waits."""
        from alembic import command
        from alembic.config import Config
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", "laura.serve:migrations")
        script = ScriptDirectory.from_config(config)
        with self.transaction(durable=True) as connection:
            if self._postgresql:
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(func.pg_advisory_xact_lock(MIGRATION_LOCK).select())
            there = set(MigrationContext.configure(connection).get_current_heads())
            if newer := there - {one.revision for one in script.walk_revisions()}:
                raise StoreError(
                    f"the database {self.name} is of a newer Laura (revision {min(newer)}, this "
                    f"one knows up to {script.get_current_head()}); upgrade Laura, or name another "
                    "database"
                )
            if there != {script.get_current_head()}:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")


def unavailable() -> ApiError:
    """What clients hear while the database does not answer; the log has the reason."""
    told = "the database of tenants does not answer, so limits cannot be kept; try again"
    return ApiError(503, told, "database_unavailable", retry_after=1)


def _checked(url: str) -> URL:
    # What came is not told: a password may be in it.
    forms = f"{SQLITE}:///PATH or {POSTGRESQL}://USER@HOST/NAME"
    try:
        where = make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError(f"the database's URL cannot be read; give {forms}") from None
    if where.password is not None or any("password" in name for name in where.query):
        raise UsageError(
            "the database's URL holds a password, which others could see; leave it out, and name "
            "it in PGPASSWORD or in the file that PGPASSFILE names"
        )
    if where.drivername == SQLITE and where.database and not (where.query or where.host):
        return where
    if where.drivername != POSTGRESQL:
        raise UsageError(f"a database of {where.drivername} cannot be used; give {forms}")
    return where


def _check_file(path: Path, name: str, new: bool) -> None:
    """Refuse a file that others may write; make a missing one for its owner alone."""
    with disk_faults(path):
        if not path.exists():
            if not new:
                make = f"`laura tenants add NAME --database {name}` makes it"
                raise StoreError(f"there is no {path}; {make}")
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise StoreError(f"{path} is no regular file; name another database")
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreError(
            f"{path} can be written by others (mode {stat.S_IMODE(facts.st_mode):03o}), who could "
            f"let themselves in; look through it, then: chmod go-w {path}"
        )


def _engine(where: URL | None) -> Engine:
    if where is not None and where.drivername == POSTGRESQL:
        # What the URL itself says goes first.
        ours = {key: value for key, value in POSTGRESQL_ARGUMENTS.items() if key not in where.query}
        try:
            return create_engine(
                where, connect_args=ours, pool_size=THREADS, max_overflow=0,
                pool_timeout=PATIENCE_SECONDS, hide_parameters=True,
            )  # fmt: skip
        except ModuleNotFoundError:
            raise MissingExtraError(
                "PostgreSQL needs psycopg: pip install 'laura-lab[postgres]'"
            ) from None
    arguments = {"timeout": PATIENCE_SECONDS, "check_same_thread": False}
    if where is None:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args=arguments)
    else:
        engine = create_engine(where, connect_args=arguments, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not when the driver likes
        for pragma in SQLITE_PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        durable = connection.get_execution_options().get("durable", False)
        driver: Any = connection.connection.driver_connection
        driver.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        # Whoever reads is about to write: two that both read first would refuse each other.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _reason(error: SQLAlchemyError) -> str:
    """The driver's own words on one line, without statement and parameters."""
    told = " ".join(str(getattr(error, "orig", None) or error).split())
    if "full" in told.lower() or "no space left" in told.lower():
        return f"{told}; free some space"
    return told
