"""A small server that speaks Laura's HTTP surface with canned answers: for the page and the chat.

It knows nothing of `laura.serve` but the page's files, so that the tests of both have
something to stand on that neither wrote.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from laura.serve.app import page_response

BASE, POET = "tiny-llama", "poet"
HOSTILE = "<script>window.stolen=1</script>\u202e<img src=x onerror=alert(1)>"
KEY, ADMIN_KEY = "sk-laura-right", "sk-laura-admin"
QUESTION, SLOW = "Where did the cat sit?", "Write for ever"
ANSWERS = {
    BASE: "The cat sat on the mat. It slept well.",
    POET: "The cat sat on a golden mat. It slept.",
    HOSTILE: "<b>bold</b> <script>window.stolen=2</script> \u202eevil",
}
SHARE = {"unit": "share", "level": 0.95, "n": 100, "seeds": 3}
RECORD: dict[str, Any] = {
    "study": "s", "base": {"model": "tiny-llama", "fingerprint": "ab", "parameters": 9},
    "method": "lora", "arm": "lora-all", "learning_rate": 2e-4, "tokens": 1000,
    "learning": {**SHARE, "tasks": ["gsm8k"], "value": 0.2, "stderr": 0.01,
                 "interval": [0.1, 0.3]},
    "forgetting": {**SHARE, "tasks": ["hellaswag"], "value": -0.012, "stderr": 0.005,
                   "interval": [-0.03, 0.01]},
    "scores": {"gsm8k": {"title": "GSM8K", "unit": "share", "higher_is_better": True,
                         "base": {"value": 0.1, "stderr": 0.02, "n": 50},
                         "tuned": {"value": 0.3, "stderr": 0.03, "n": 50},
                         "change": {"value": 0.2, "stderr": 0.01, "n": 50}}},
    "claims": {"forgets-less": "supported", "learns-less": "undecided"},
}  # fmt: skip
STATE: dict[str, Any] = {
    "ready": True, "why_not": "", "slots_total": 4, "tokens_per_second": 41.26,
    "slots": [{"adapter": HOSTILE, "pinned": True, "in_use": 2, "bytes": 3_000_000}],
    "running": {"acme": 2}, "waiting": {"acme": 0, "umbrella": 0}, "cache_tokens": 12345,
    "memory_bytes": {"weights": 2**29, "adapters": 3_000_000, "cache": 2**20},
    "tenants": {"acme": {"requests": 17, "tokens": 4321, "tokens_left": None},
                "umbrella": {"requests": 0, "tokens": 0, "tokens_left": 99}},
}  # fmt: skip


@dataclass
class Behaviour:
    """How the server is to behave, and what it saw.

    Attributes:
        needs_keys: Whether requests without the right key are refused.
        has_template: Whether the base can chat.
        failing: Model that breaks off in the middle of an answer.
        full: Model whose queue is full.
        tuned_base: Whether the base is itself the outcome of a study.
        asked: Path and body of every request for an answer.
        broken_off: Set when a client went away while it was answered.
        ready: Set to let answers go on after their first word.
    """

    needs_keys: bool = False
    has_template: bool = True
    failing: str = ""
    full: str = ""
    tuned_base: bool = False
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    broken_off: threading.Event = field(default_factory=threading.Event)
    ready: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self.allowed(KEY):
                self.json(200, {"object": "list", "data": models(self.behaviour)})
        elif self.path == "/admin/state":
            if self.allowed(ADMIN_KEY):
                self.json(200, STATE)
        else:
            name = self.path.removeprefix("/static/") if self.path != "/" else "index.html"
            found = page_response(name, self.headers.get("if-none-match"))
            if found is None:
                self.json(404, {"error": {"message": "nothing here", "code": "not_found"}})
            else:
                self.send(found.status_code, dict(found.headers), bytes(found.body))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.allowed(KEY):
            return
        self.behaviour.asked.append((self.path, body))
        if self.path == "/v1/chat/completions" and not self.behaviour.has_template:
            self.fault(400, "this base has no chat template", "no_chat_template")
            return
        if body["model"] == self.behaviour.full:
            self.fault(429, "The queue is full.", "queue_full", {"retry-after": "7"})
            return
        chat = self.path == "/v1/chat/completions"
        question = body["messages"][-1]["content"] if chat else body["prompt"]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            self.stream(body["model"], question, chat)
        except OSError:
            self.behaviour.broken_off.set()

    def stream(self, model: str, question: str, chat: bool) -> None:
        words = ANSWERS[model].split(" ")
        if question == SLOW:
            words = ["word"] * 2000
        # A comment keeps the line alive, and is no answer.
        self.wfile.write(b": still working\r\n\r\n")
        for place, word in enumerate(words):
            text = word if not place else f" {word}"
            choice = {"delta": {"content": text}} if chat else {"text": text}
            self.event({"choices": [{"index": 0, "finish_reason": None, **choice}]})
            if question == SLOW:
                time.sleep(0.02)
            elif not place:
                self.behaviour.ready.wait(20)
            if model == self.behaviour.failing and place == 2:
                self.event({"error": {"message": "the engine has stopped", "code": "engine_gone"}})
                return
        end = {"delta": {}} if chat else {"text": ""}
        self.event({"choices": [{"index": 0, "finish_reason": "stop", **end}]})
        self.event({"choices": [], "usage": {"completion_tokens": len(words) + 1}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def allowed(self, key: str) -> bool:
        given = self.headers.get("authorization", "")
        if not self.behaviour.needs_keys or given == f"Bearer {key}":
            return True
        self.fault(
            401, "This key is not known." if given else "A key is needed.", "invalid_api_key"
        )
        return False

    def fault(
        self, status: int, message: str, code: str, headers: dict[str, str] | None = None
    ) -> None:
        error = {"message": message, "type": "x", "param": None, "code": code}
        self.json(status, {"error": error}, headers)

    def json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        headers = {"content-type": "application/json", **(headers or {})}
        self.send(status, headers, json.dumps(value).encode())

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def models(behaviour: Behaviour) -> list[dict[str, Any]]:
    """The base, an adapter with a record, and one whose name and answer mean harm."""

    def one(name: str, record: Any, warnings: list[str]) -> dict[str, Any]:
        parent = None if name == BASE else BASE
        laura = {"record": record, "warnings": warnings}
        return {"id": name, "object": "model", "parent": parent, "root": BASE, "laura": laura}

    return [
        one(BASE, RECORD if behaviour.tuned_base else None, []),
        one(POET, RECORD, ["forgets more than the policy allows"]),
        one(HOSTILE, None, []),
    ]


@contextmanager
def served(behaviour: Behaviour) -> Iterator[str]:
    """A server on a free port of this machine: its address."""
    handler = type("Bound", (Handler,), {"behaviour": behaviour})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        behaviour.ready.set()
        server.shutdown()
        server.server_close()
        thread.join()
