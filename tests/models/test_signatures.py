"""Signatures of adapters: OpenSSF's format both ways, and every byte that somebody might change."""

from __future__ import annotations

import base64
import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from laura.models.signatures import PREDICATE, SIGNATURE, PublicKey, check_signed, sign_folder
from laura.results.errors import AdapterError, LauraError, MissingExtraError, UsageError

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
# Made by OpenSSF's own `model_signing sign key` 1.1.1 of the two files in FILES. The other way,
# its `verify key` took what `laura sign` had made with each of the three curves.
THEIRS = Path(__file__).with_name("openssf.sig")
THEIR_KEY = """\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEcnq1tjK1rseaqKyPmMcsTbEb2ryC
t0kkkFb7W9NsmSQJHgz2kdG7Gjgc7vwJpS046uAe4w9iCooHbsUGVLX4qw==
-----END PUBLIC KEY-----
"""
FILES = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"weights"}


def keys(folder: Path, key: Any = None, encrypted: bool = False) -> tuple[Path, Path]:
    """PEM files of a pair."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    lock = forms.BestAvailableEncryption(b"secret") if encrypted else forms.NoEncryption()
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, lock))
    public.write_bytes(
        key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "adapter"
    made.mkdir()
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    return made


def test_what_openssf_signed_is_read(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "theirs.pem").write_text(THEIR_KEY)
    key = PublicKey(tmp_path / "theirs.pem")
    signed = key.signed_files(THEIRS.read_bytes(), Path("model.sig"))
    assert sign_folder(folder, keys(tmp_path)[0]) == signed
    ours, theirs = (statement(path) for path in (folder / SIGNATURE, THEIRS))
    assert ours["subject"][0]["digest"] == theirs["subject"][0]["digest"]
    assert ours["predicate"]["resources"] == theirs["predicate"]["resources"]


def statement(path: Path) -> Any:
    return json.loads(base64.b64decode(json.loads(path.read_bytes())["dsseEnvelope"]["payload"]))


@pytest.mark.parametrize("curve", CURVES)
def test_every_curve(curve: str, tmp_path: Path, folder: Path) -> None:
    private, public = keys(tmp_path, ec.generate_private_key(CURVES[curve]))
    signed = sign_folder(folder, private)
    assert sign_folder(folder, private) == signed, "a signature is never signed itself"
    content = (folder / SIGNATURE).read_bytes()
    assert PublicKey(public).signed_files(content, Path("model.sig")) == signed
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(AdapterError, match="another key than the required one, or was changed"):
        PublicKey(keys(other)[1]).signed_files(content, Path("model.sig"))


def test_no_changed_signature_passes(tmp_path: Path, folder: Path) -> None:
    """A bit of payload or signature, all of it; anything else that is no signature."""
    private, public = keys(tmp_path)
    signed = sign_folder(folder, private)
    key, whole = PublicKey(public), json.loads((folder / SIGNATURE).read_bytes())
    for part in ("payload", "sig"):
        place = (
            whole["dsseEnvelope"] if part == "payload" else whole["dsseEnvelope"]["signatures"][0]
        )
        content = base64.b64decode(place[part])
        for byte in range(0, len(content), 7):
            changed = bytearray(content)
            changed[byte] ^= 1
            kept, place[part] = place[part], base64.b64encode(changed).decode()
            with pytest.raises(AdapterError):
                key.signed_files(json.dumps(whole).encode(), Path("model.sig"))
            place[part] = kept
    assert key.signed_files(json.dumps(whole).encode(), Path("model.sig")) == signed
    for text in (
        "",
        "{}",
        "[]",
        "3",
        '{"dsseEnvelope": 1}',
        "[" * 9999,
        '{"a": 1, "a": 2}',
        "\udcff",
    ):
        with pytest.raises(AdapterError):
            key.signed_files(text.encode("utf-8", "surrogateescape"), Path("model.sig"))


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.update(predicateType="https://example.org/other"),
        lambda one: one["predicate"]["resources"].append(one["predicate"]["resources"][0]),
        lambda one: one["predicate"]["resources"][0].update(algorithm="blake2b"),
        lambda one: one["predicate"].update(resources=[]),
        lambda one: one.update(predicate=[1]),
    ],
)
def test_a_signed_statement_of_another_kind(
    change: Callable[[Any], object], tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys(tmp_path)
    real = json.dumps

    def changed(value: Any, **options: Any) -> str:
        if isinstance(value, dict) and value.get("predicateType") == PREDICATE:
            change(value)
        return real(value, **options)

    with monkeypatch.context() as patched:
        patched.setattr(json, "dumps", changed)
        sign_folder(folder, private)
    with pytest.raises(AdapterError, match="no signature that can be read"):
        PublicKey(public).signed_files((folder / SIGNATURE).read_bytes(), Path("model.sig"))


def test_what_was_found_is_compared_with_what_was_signed() -> None:
    signed = {"a": "1", "b": "2"}
    check_signed(signed, {"a": "1"}, Path("x"))
    check_signed(signed, {"a": "1", "c": None}, Path("x"))
    for found, words in (
        ({"a": "2"}, "x/a is not the one that was signed"),
        ({"c": "1"}, "x/c was not signed"),
        ({"b": None}, "x/b was signed and is not there"),
    ):
        with pytest.raises(AdapterError, match=words):
            check_signed(signed, found, Path("x"))


def test_keys_that_cannot_be_used(tmp_path: Path, folder: Path) -> None:
    made = [
        lambda: keys(tmp_path, ec.generate_private_key(ec.SECP256K1()))[0],
        lambda: keys(tmp_path, rsa.generate_private_key(65537, 2048))[0],
        lambda: keys(tmp_path, encrypted=True)[0],
        lambda: keys(tmp_path)[1],
        lambda: folder / "adapter_config.json",
    ]
    for make in made:
        with pytest.raises(UsageError, match=r"no private key that can be used .* openssl ecparam"):
            sign_folder(folder, make())
    with pytest.raises(UsageError, match="no public key"):
        PublicKey(keys(tmp_path)[0])
    with pytest.raises(LauraError, match="does not exist"):
        PublicKey(tmp_path / "absent.pem")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="no files to sign"):
        sign_folder(tmp_path / "empty", keys(tmp_path)[0])


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"laura-lab\[signing\]"):
        PublicKey(tmp_path / "key.pem")
