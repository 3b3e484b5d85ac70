"""Downloads against a small Hub of our own, in a process that believes in it.

huggingface_hub reads its endpoint and cache when it is imported, and the test
session is offline, hence the second process.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import json, sys
from laura.results.errors import LauraError
from laura.models.fetch import download

class Bar:
    done = 0.0
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def advance(self, amount=1.0): self.done += amount
    def note(self, text): pass

class Listener:
    bars = []
    def bar(self, title, total, unit=""):
        self.bars.append((title, total, unit, Bar()))
        return self.bars[-1][-1]
    def say(self, text): pass

listener = Listener()
try:
    folder = download(sys.argv[1], sys.argv[2] or None, listener)
    answer = {"files": sorted(p.name for p in folder.iterdir()), "folder": str(folder)}
except LauraError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
answer["bars"] = [(title, total, unit, bar.done) for title, total, unit, bar in listener.bars]
print(json.dumps(answer))
"""


class Hub(BaseHTTPRequestHandler):
    """Just enough of the Hub: a model, a gated one, none else."""

    files: dict[str, bytes]
    gets: list[str]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.gets.append(self.path)
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        if "/secret" in path:
            return self.send(403, b"{}", with_body, {"X-Error-Code": "GatedRepo"})
        if "/model" not in path:
            return self.send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
        if "/revision/nonesuch" in path:
            return self.send(404, b"{}", with_body, {"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": sha1(content)}
                for name, content in self.files.items()
            ]
            return self.send(200, json.dumps(entries).encode(), with_body)
        if path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.files]
            about = {"id": "owner/model", "sha": COMMIT, "siblings": siblings}
            return self.send(200, json.dumps(about).encode(), with_body)
        content = self.files[path.split(f"/resolve/{COMMIT}/")[1]]
        self.send(200, content, with_body, {"ETag": f'"{sha1(content)}"', "X-Repo-Commit": COMMIT})
        return None

    def send(
        self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[str]:
    Hub.files = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    Hub.files |= {"pytorch_model.bin": b"pickle", "original/consolidated.safetensors": b"huge"}
    Hub.gets = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(endpoint: str, cache: Path, repository: str, revision: str = "") -> dict[str, Any]:
    """Download in a process of its own; nothing but our answer may be printed."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, repository, revision],
        env={**os.environ, **settings},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_only_what_is_read_is_downloaded_and_then_works_offline(
    hub: str, tmp_path: Path, tiny_folder: Path
) -> None:
    answer = ask(hub, tmp_path, "owner/model")
    assert answer["files"] == sorted(path.name for path in tiny_folder.iterdir())
    size = sum(path.stat().st_size for path in tiny_folder.iterdir()) / 1e6
    [(title, total, unit, done)] = answer["bars"]
    assert (title, unit) == ("Downloading owner/model", "MB")
    assert total == pytest.approx(size)
    assert done == pytest.approx(size)

    again = ask(hub, tmp_path, "owner/model")
    assert (again["folder"], again["bars"]) == (answer["folder"], [])
    offline = ask("http://127.0.0.1:9", tmp_path, "owner/model")
    assert offline["folder"] == answer["folder"]


@pytest.mark.parametrize(
    ("repository", "revision", "message"),
    [
        ("owner/secret", "", "owner/secret is gated: accept its licence on https://huggingface.co"),
        ("owner/nothing", "", "'owner/nothing' is neither a folder here nor a repository"),
        ("owner/model", "nonesuch", "owner/model has no revision 'nonesuch'"),
        ("own er/mo del", "", "'own er/mo del' is no Hub id; write OWNER/NAME"),
    ],
)
def test_what_the_hub_refuses(
    hub: str, tmp_path: Path, repository: str, revision: str, message: str
) -> None:
    answer = ask(hub, tmp_path, repository, revision)
    assert answer["error"] == "HubError"
    assert message in answer["message"]


def test_no_hub_at_all(tmp_path: Path) -> None:
    answer = ask("http://127.0.0.1:9", tmp_path, "owner/model")
    assert answer["error"] == "HubError"
    assert "the Hub cannot be reached" in answer["message"]
    assert "laura fetch smollm2-135m-instruct-q4" in answer["message"]
