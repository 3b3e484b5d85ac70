"""`laura push` against a stand-in for the Hub's own endpoints, through huggingface_hub."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from laura.cli.app import app
from laura.models.adapters import attach, save_adapter
from laura.models.lora import LoraSettings
from laura.results.store import write_folder
from tests.conftest import make_tiny_model

TOKEN = "hf_" + "x" * 34


@dataclass
class Hub:
    """What was asked of the stand-in."""

    url: str = ""
    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "Invalid credentials"})
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                if asked["organization"] == "theirs":
                    return self.answer(403, {"error": "You do not have the rights to create it"})
                found.made.append(asked)
                url = f"{found.url}/{asked['organization'] or 'me'}/{asked['name']}"
                return self.answer(200, {"url": url})
            if self.path == "/api/validate-yaml":
                base = str(ModelCard(json.loads(body)["content"]).data.base_model)
                faults = [{"message": '"base_model" is no id'}] if base.startswith("/") else []
                return self.answer(400 if faults else 200, {"errors": faults, "warnings": []})
            if "/preupload/" in self.path:
                paths = [file["path"] for file in json.loads(body)["files"]]
                kind = {"uploadMode": "regular", "shouldIgnore": False}
                return self.answer(200, {"files": [{"path": path, **kind} for path in paths]})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    found.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(200, {"commitUrl": f"{found.url}/me/x/commit/1", "commitOid": "1"})

        def answer(self, status: int, value: dict[str, Any]) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """As a checkpoint of a study has it, on a base of the Hub."""
    model, settings = make_tiny_model(), LoraSettings(rank=2, alpha=4.0)
    attach(model, settings, seed=0)
    folder = tmp_path / "adapter"
    write_folder(folder, lambda at: save_adapter(model, at, settings, "our-org/tiny"), {})
    return folder


def push(*words: object) -> tuple[int, str, str]:
    """Exit code, answer and messages of `laura push`."""
    ended = CliRunner().invoke(app, ["push", *map(str, words)])
    return ended.exit_code, ended.stdout, " ".join(ended.stderr.split())


def test_an_adapter_and_a_model_are_pushed(hub: Hub, adapter: Path, tiny_folder: Path) -> None:
    code, said, told = push(adapter, "our-org/support")
    assert (code, said) == (0, f"{hub.url}/our-org/support\n"), told
    assert "which others do not have" not in told
    [asked] = hub.made
    assert (asked["organization"], asked["name"]) == ("our-org", "support")
    assert asked.get("visibility") == "private" or asked.get("private") is True
    # All that stands there but the study's own manifest, byte for byte.
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(hub.files) == names and (adapter / "manifest.json").is_file()
    assert hub.files == {name: (adapter / name).read_bytes() for name in names}
    hub.files.clear()
    code, _, told = push(tiny_folder, "tiny", "--public", "--json")
    assert code == 0, told
    assert hub.made[1].get("visibility") == "public" or hub.made[1].get("private") is False
    assert "model.safetensors" in hub.files


def test_a_base_that_others_do_not_have_is_told(hub: Hub, adapter: Path) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace("our-org/tiny", "/srv/tiny"))
    code, _, told = push(adapter, "our-org/support")
    assert code == 0 and "its base is /srv/tiny, which others do not have" in told


def test_what_the_hub_refuses_is_told_in_a_line(
    hub: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, told = push(adapter, "theirs/support")
    assert code == 2 and "the Hub refused theirs/support" in told and "hf auth login" in told
    code, _, told = push(adapter, "not an id")
    assert code == 2 and "'not an id' is no Hub id; write OWNER/NAME" in told
    (adapter / "README.md").write_text("---\nbase_model: /srv/tiny\n---\n")
    code, _, told = push(adapter, "our-org/support")
    assert code == 2 and '"base_model" is no id; mend it and push again' in told
    (adapter / "adapter_model.safetensors").unlink()
    code, _, told = push(adapter, "our-org/support")
    assert code == 2 and "has no adapter_model.safetensors" in told
    code, _, told = push(tmp_path, "our-org/support")
    assert code == 2 and "is no usable model folder" in told
    assert not hub.files


def test_without_a_token_or_a_network(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, told = push(adapter, "our-org/support")
    assert code == 2 and "the Hub cannot be reached" in told and "Traceback" not in told
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(adapter / "none"))
    code, _, told = push(adapter, "our-org/support")
    assert code == 2 and "only from whom it knows: log in with `hf auth login`" in told
