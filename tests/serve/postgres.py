"""A PostgreSQL of our own, in a folder of its own, that a test may stop and start."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Postgres:
    """A server on a Unix socket, which lets in whoever reaches it."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder, self._programs = folder, programs
        self._databases = 0
        self._as: list[str] = []
        if os.geteuid() == 0:  # it refuses to run as root
            user = pwd.getpwnam("nobody")
            os.chown(folder, user.pw_uid, user.pw_gid)
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            self._as = ["setpriv", *ids]
        self._call("initdb", "--auth=trust", "--username=laura", "--no-sync", "--locale=C")

    def _call(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [*self._as, str(self._programs / program), "-D", str(self._folder / "data"), *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    def start(self) -> None:
        settings = f"-c listen_addresses= -c fsync=off -k {self._folder}"
        log = str(self._folder / "log")
        self._call("pg_ctl", "start", "--wait", "--silent", "--log", log, "--options", settings)

    def stop(self) -> None:
        """As if the power went: connections are broken off."""
        self._call("pg_ctl", "stop", "--mode=immediate", "--silent")

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://laura@/{name}?host={self._folder}"

    def new(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        self._databases += 1
        name = f"test{self._databases}"
        with psycopg.connect(
            host=str(self._folder), user="laura", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server that runs until the end; skips the test where PostgreSQL is not installed."""
    pytest.importorskip("psycopg", reason="no psycopg: pip install 'laura-lab[postgres]'")
    found = [*Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), shutil.which("pg_ctl")]
    programs = next((Path(one).resolve().parent for one in found if one), None)
    if programs is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="laura-pg-"))  # a socket's path has to be short
    server = Postgres(folder, programs)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
