"""One database for several gates: exact limits, dead gates, outages; SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, func, text

from laura.results.errors import MissingExtraError, StoreError, UsageError
from laura.serve import accounts as accounts_file
from laura.serve.accounts import Accounts, Limits
from laura.serve.auth import hash_of_key
from laura.serve.database import METADATA, MIGRATION_LOCK, Database
from laura.serve.limits import LimitError
from laura.serve.tenant_changes import add_key, replace, revoke_key
from tests.serve.houses import BASE, House, build, file_of, key, listening, tenant, until
from tests.serve.postgres import Postgres, running_postgres
from tests.serve.real_server import ENVIRONMENT, command, serving

ROOT = str(Path(__file__).parents[2])
ASK = {"model": BASE, "prompt": "a b", "max_tokens": 4}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database that several processes can open."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'laura.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new()


# ----- versions -----


def test_the_migrations_make_what_the_code_expects(url: str) -> None:
    with Database(url).transaction() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_newer_database_is_refused_and_stays_as_it_is(url: str) -> None:
    with Database(url).transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"of a newer Laura \(revision 9999.*upgrade Laura"):
        Database(url)


def processes(url: str, code: str, count: int) -> list[list[int]]:
    """The numbers that processes tell which begin at once."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, str(seed)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for seed in range(count)
    ]  # fmt: skip
    for one in running:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for one in running:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    told = [one.communicate(timeout=120)[0] for one in running]
    assert all(one.returncode == 0 for one in running)
    return [[int(number) for number in line.split()] for line in told]


OPEN = """
import sys
from laura.serve.database import Database
print("ready", flush=True)
sys.stdin.readline()
Database(sys.argv[1]).close()
print(1)
"""


def test_gates_that_start_at_once_migrate_once(url: str) -> None:
    assert processes(url, OPEN, 4) == [[1]] * 4


def test_who_finds_another_at_it_waits(postgres: Postgres) -> None:
    url = postgres.new()
    other = create_engine(url, connect_args={"client_encoding": "utf8"})
    with other.connect() as connection, ThreadPoolExecutor() as threads:
        connection.execute(func.pg_advisory_xact_lock(MIGRATION_LOCK).select())
        starting = threads.submit(Database, url)
        with pytest.raises(TimeoutError):
            starting.result(1)
        connection.rollback()
        starting.result(30).close()
    other.dispose()


# ----- exactness -----

WORK = """
import random, sys
from laura.serve.accounts import Accounts
from laura.serve.database import Database
from laura.serve.limits import LimitError
url, seed = sys.argv[1:]
draw = random.Random(seed)
gate = Accounts(Database(url, clock=lambda: 1000.0))
asked = admitted = refused = reserved = used = 0
print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    name = f"{seed}-{number}"
    try:
        gate.admit(name, "ann")
        admitted += 1
        most, least = draw.randint(0, 50), 0
        try:
            gate.reserve(name, most)
        except LimitError:
            refused += 1
        else:
            least = draw.randint(0, most + 5)  # an engine may go a little further
        used += least
        gate.settle(name, least)
        gate.settle(name, 10**6)
    except LimitError:
        refused += 1
print(admitted, refused, used)
"""


def test_no_charge_of_several_processes_is_lost(url: str) -> None:
    """The clock stands still, so what is left is what there was, less what each process used."""
    database = Database(url, clock=lambda: 1000.0)
    replace(database, file_of(tenant("ann", requests_per_minute=150, tokens_per_minute=100_000)))
    found = processes(url, WORK, 4)
    usage = Accounts(database).usage()["ann"]
    admitted, refused, used = (sum(one[place] for one in found) for place in range(3))
    assert admitted == 150 and usage.requests == 150 and usage.requests_left == 0
    assert (usage.refused, usage.tokens, usage.running) == (refused, used, 0)
    assert usage.tokens_left == 100_000 - used
    assert refused >= 4 * 60 - 150


RESERVE = """
import sys
from laura.serve.accounts import Accounts
from laura.serve.database import Database
from laura.serve.limits import LimitError
url, seed = sys.argv[1:]
gate = Accounts(Database(url, clock=lambda: 1000.0))
let_in = reserved = 0
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    try:
        gate.admit(f"{seed}-{number}", "ann")
        let_in += 1
        gate.reserve(f"{seed}-{number}", 7)
        reserved += 7
    except LimitError:
        pass
print(let_in, reserved)
"""


def test_several_processes_let_in_and_reserve_as_much_as_there_is(url: str) -> None:
    database = Database(url, clock=lambda: 1000.0)
    replace(database, file_of(tenant("ann", concurrent=30, tokens_per_minute=100)))
    found = processes(url, RESERVE, 3)
    assert sum(let_in for let_in, _ in found) == 30
    assert sum(reserved for _, reserved in found) == 98  # 14 times 7; 2 are left
    usage = Accounts(database).usage()["ann"]
    assert (usage.running, usage.tokens_left) == (30, 2)


def test_a_dead_gates_places_become_free_and_what_it_reserved_is_used(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [1000.0]
    monkeypatch.setattr(accounts_file.time, "monotonic", lambda: moment[0])
    database = Database(url, clock=lambda: moment[0])
    replace(database, file_of(tenant("ann", concurrent=1, tokens_per_minute=100)))
    dead, other = Accounts(database), Accounts(database)
    dead.beat()
    other.beat()
    dead.admit("a", "ann")
    dead.reserve("a", 60)
    for _ in range(4):
        moment[0] += 3
        other.beat()
        with suppress(LimitError):
            other.admit("b", "ann")
            break
    assert 1010 < moment[0] <= 1012, "as long as a lease"
    dead.settle("a", 5)  # it was not dead after all: nothing is charged twice
    usage = other.usage()["ann"]
    assert (usage.running, usage.tokens) == (1, 60)


def test_after_an_outage_nobody_is_declared_dead_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [1000.0]
    monkeypatch.setattr(accounts_file.time, "monotonic", lambda: moment[0])
    database = Database(url, clock=lambda: moment[0])
    replace(database, file_of(tenant("ann")))
    one, other = Accounts(database), Accounts(database)
    for gate in (one, other):
        gate.beat()
    other.admit("a", "ann")
    moment[0] += 60  # nobody reached the database
    one.beat()
    moment[0] += 3
    other.beat()
    for _ in range(10):
        moment[0] += 3
        one.beat()
        other.beat()
    assert one.usage()["ann"].running == 1


def test_who_gives_up_while_the_database_hangs_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "laura.db"
    database = Database(f"sqlite:///{path}")
    replace(database, file_of(tenant("ann", concurrent=1)))
    limits = Limits(database)

    async def give_up() -> None:
        asking = asyncio.create_task(limits.admit("ann"))
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    with held(path):
        asyncio.run(give_up())
    until(lambda: limits.accounts.usage()["ann"].requests == 1)
    until(lambda: limits.accounts.usage()["ann"].running == 0)


# ----- several gates -----


def gate(tokenizer: Any, url: str, **options: Any) -> House:
    return build(tokenizer, database=Database(url), **options)


def test_two_gates_share_limits_and_a_revoked_key_opens_neither(
    micro_tokenizer: Any, url: str
) -> None:
    database = Database(url)
    replace(database, file_of(tenant("ann", "*", requests_per_minute=6)))
    made = add_key(database, "ann")
    headers = {"authorization": f"Bearer {made}"}
    one, other = gate(micro_tokenizer, url), gate(micro_tokenizer, url)
    with listening(one) as first, listening(other) as second:

        def status(at: str, method: str = "POST") -> int:
            path = "completions" if method == "POST" else "models"
            body = ASK if method == "POST" else None
            return httpx.request(method, f"{at}/v1/{path}", json=body, headers=headers).status_code

        found = [status(at) for at in (first, second) * 4]
        assert found == [200] * 6 + [429] * 2
        assert one.used("ann").requests == other.used("ann").requests == 6
        revoke_key(database, "ann", hash_of_key(made))
        time.sleep(1)
        assert [status(first), status(second), status(first, "GET")] == [401] * 3


# ----- outages -----


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another program holds the file for itself."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another program has locked the tables of PostgreSQL."""
    other = Database(url)
    with other.transaction() as connection:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("LOCK TABLE tenants, gates, revision"))
        yield


def health(at: str, over: threading.Event, seconds: list[float]) -> None:
    with httpx.Client(base_url=at) as client:
        while not over.is_set():
            began = time.perf_counter()
            assert client.get("/healthz").status_code == 200
            seconds.append(time.perf_counter() - began)
            time.sleep(0.02)


def outage(house: House, begin: Any, end: Any) -> None:
    """A stream that has begun goes on; what is new gets 503; all comes back by itself."""
    seconds, over = list[float](), threading.Event()
    house.engine.pause = 0.1
    with listening(house, keeping=True) as at, httpx.Client(base_url=at, headers=key("ann")) as ann:
        monitor = threading.Thread(target=health, args=(at, over, seconds))
        long = {**ASK, "prompt": "word " * 60, "max_tokens": 50, "stream": True}
        with ann.stream("POST", "/v1/completions", json=long) as stream:
            lines = stream.iter_lines()
            next(lines)
            begin()
            monitor.start()
            until(lambda: ann.get("/readyz").status_code == 503)
            why = ann.get("/readyz").json()["error"]
            assert why["code"] == "database_unavailable" and "database" in why["message"]
            for path, body in (("completions", ASK), ("chat/completions", {})):
                refused = ann.post(f"/v1/{path}", json=body)
                assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
                assert refused.json()["error"]["code"] == "database_unavailable"
            assert ann.post("/admin/adapters/maths/pin", headers=key("admin")).status_code == 503
            assert sum(1 for line in lines if line.startswith("data:")) > 45
        over.set()
        monitor.join()
        end()
        until(lambda: ann.get("/readyz").status_code == 200)
        house.engine.pause = 0
        assert ann.post("/v1/completions", json=ASK).status_code == 200
        until(lambda: house.used("ann").running == 0)
    assert len(seconds) > 20 and sorted(seconds)[len(seconds) * 95 // 100] < 0.2
    read = sum(len(one.prompt) for one in house.engine.asked)
    assert house.used("ann").tokens == read + 50 + 2, "what ended meanwhile was charged later"
    log = house.log.getvalue()
    assert '{"database": "answers again"}' in log


def test_a_file_that_is_held(micro_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "laura.db"
    house = build(micro_tokenizer, tenant("ann", "*"), database=Database(f"sqlite:///{path}"))
    holding = held(path)
    outage(house, holding.__enter__, lambda: holding.__exit__(None, None, None))
    assert "database is locked" in house.log.getvalue() or "does not answer" in house.log.getvalue()


def test_a_database_that_hangs(micro_tokenizer: Any, postgres: Postgres) -> None:
    url = postgres.new()
    house = build(micro_tokenizer, tenant("ann", "*"), database=Database(url))
    holding = locked(url)
    outage(house, holding.__enter__, lambda: holding.__exit__(None, None, None))


def test_a_database_that_goes_away(micro_tokenizer: Any, postgres: Postgres) -> None:
    url = postgres.new()
    house = build(micro_tokenizer, tenant("ann", "*"), database=Database(url))
    try:
        outage(house, postgres.stop, postgres.start)
    finally:
        with suppress(AssertionError):
            postgres.start()
    assert '{"database": "the database postgresql+psycopg://laura@' in house.log.getvalue()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_full(micro_tokenizer: Any, tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        url, ballast = f"sqlite:///{tmp_path / 'laura.db'}", tmp_path / "ballast"
        house = build(micro_tokenizer, tenant("ann", "*"), database=Database(url))

        def fill() -> None:
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(b"x" * 256)

        outage(house, fill, ballast.unlink)
        assert "full; free some space" in house.log.getvalue()
        house.app.state.service.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


# ----- where it is, and who may know -----


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql+psycopg://laura:geheim@host/db", "holds a password.*PGPASSFILE"),
        ("postgresql+psycopg://host/db?password=geheim", "holds a password"),
        ("postgresql+psycopg://host/db?sslpassword=geheim", "holds a password"),
        ("postgresql+psycopg://laura:geheim@host:x/db", "cannot be read"),
        ("geheim", "cannot be read; give sqlite:///PATH or postgresql"),
        ("sqlite://", "cannot be used"),
        ("sqlite://laura.db", "cannot be used"),
        ("mysql://host/db", "a database of mysql cannot be used"),
    ],
)
def test_urls_that_cannot_be_meant(url: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as refused:
        Database(url)
    assert "geheim" not in str(refused.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "laura.db"
    with pytest.raises(StoreError, match=r"there is no .*laura tenants add NAME --database sqlite"):
        Database(f"sqlite:///{path}", new=False)
    assert not path.exists()
    path.write_text("Who may use `laura serve`." * 100)
    path.chmod(0o600)
    with pytest.raises(StoreError, match="file is not a database"):
        Database(f"sqlite:///{path}")
    path.chmod(0o620)
    with pytest.raises(StoreError, match=r"written by others \(mode 620\).*chmod go-w"):
        Database(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="no regular file"):
        Database(f"sqlite:///{tmp_path}")


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'laura-lab\[postgres\]'"):
        Database("postgresql+psycopg://laura@127.0.0.1:9/laura")


@pytest.mark.parametrize("words", [("serve", "micro"), ("tenants", "list")])
def test_a_database_that_is_down_at_the_start(words: tuple[str, ...], postgres: Postgres) -> None:
    environment = {**ENVIRONMENT, "PGPASSWORD": "geheim"}
    place = ["--database", "postgresql+psycopg://laura@127.0.0.1:9/laura"]
    done = subprocess.run(
        [*command()[:3], *words, *place], env=environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "error: the database postgresql+psycopg://laura@127.0.0.1:9/laura fails:" in done.stderr
    assert "geheim" not in done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_servers_of_which_one_is_killed(postgres: Postgres) -> None:
    """What the dead one held is free after its lease; a revoked key opens the other no more."""
    url = postgres.new()
    database = Database(url)
    replace(database, file_of(tenant("ann", concurrent=1, tokens_per_day=10_000)))
    made = add_key(database, "ann")
    headers = {"authorization": f"Bearer {made}"}
    words = ("micro", "--precision", "fp32", "--device", "cpu", "--database", url)
    long = {"model": "micro", "prompt": "Beno", "max_tokens": 400, "ignore_eos": True}
    with serving(*words) as one, serving(*words) as other:

        def status(**more: Any) -> int:
            body = {"model": "micro", "prompt": "Beno", "max_tokens": 1, **more}
            asked = httpx.post(f"{other.url}/v1/completions", json=body, headers=headers)
            return asked.status_code

        assert status() == 200
        with httpx.stream(
            "POST", f"{one.url}/v1/completions", json={**long, "stream": True}, headers=headers
        ) as stream:
            next(stream.iter_lines())
            one.child.send_signal(signal.SIGSTOP)  # else it may be done by then
            assert status() == 429
            one.child.kill()
        killed = time.monotonic()
        until(lambda: status() == 200, 30)
        assert time.monotonic() - killed > 5
        usage = Accounts(database).usage()["ann"]
        assert usage.running <= 1 and usage.tokens > 400
        revoke_key(database, "ann", hash_of_key(made))
        until(lambda: status() == 401, 1.2)
    assert other.child.returncode == 0
