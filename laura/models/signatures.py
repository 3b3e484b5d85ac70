"""Signatures of adapters, by a pair of keys of one's own, in OpenSSF's model signing format.

`model.sig` lies beside the files: a Sigstore bundle (https://docs.sigstore.dev/about/bundle/) of a
DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto statement that gives
the SHA-256 of every file. OpenSSF's own `model_signing verify key` reads what is signed here, and
what it signs is read here. Its library hashes the files of a path by itself; here the signed hashes
are given back, to be compared with those of the very bytes that are used.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.models.safe_files import strict_json
from laura.results.errors import AdapterError, MissingExtraError, UsageError
from laura.results.inputs import MOST_CONFIG_BYTES, read_bounded
from laura.results.store import disk_faults, file_hash, write_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurve

SIGNATURE = "model.sig"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
MAKE_KEYS = (
    "make a pair: openssl ecparam -name prime256v1 -genkey -noout -out private.pem; "
    "openssl ec -in private.pem -pubout -out public.pem"
)


def sign_folder(folder: Path, private_key: Path) -> dict[str, str]:
    """Sign every file of a folder; writes its `model.sig`.

    Args:
        folder: An adapter's.
        private_key: PEM file of a key on the curve P-256, P-384 or P-521, not encrypted.

    Returns:
        SHA-256 of each file that is signed, hexadecimal, by its path in the folder.

    Raises:
        AdapterError: it holds no files.
        UsageError: the key cannot be used.
        StoreError: a file cannot be read or written.
        MissingExtraError: the extra `signing` is not installed.
    """
    key = _load(private_key, private=True)
    with disk_faults(folder):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        sums = {name: file_hash(folder / name) for name in names if name != SIGNATURE}
    if not sums:
        raise AdapterError(f"{folder} holds no files to sign; give an adapter's folder")
    listed = [{"name": n, "algorithm": "sha256", "digest": sums[n]} for n in sorted(sums)]
    whole = hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in listed)).hexdigest()
    method = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": folder.resolve().name, "digest": {"sha256": whole}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {**method, "ignore_paths": [SIGNATURE]},
            "resources": listed,
        },
    }
    payload = json.dumps(statement).encode()
    made = key.sign(_enveloped(payload), _ecdsa(key.curve))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD,
        "signatures": [{"sig": base64.b64encode(made).decode(), "keyid": ""}],
    }
    material = {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []}
    bundle = {"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}
    write_text(folder / SIGNATURE, json.dumps(bundle) + "\n")
    return sums


class PublicKey:
    """The key that signatures are checked with.

    Args:
        path: PEM file, of the curve P-256, P-384 or P-521.

    Raises:
        UsageError: it is no such key.
        StoreError: it cannot be read.
        MissingExtraError: the extra `signing` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._key = _load(path, private=False)

    def signed_files(self, content: bytes, label: Path) -> dict[str, str]:
        """What a signature says.

        Args:
            content: Of a `model.sig`.
            label: What it is called in messages.

        Returns:
            SHA-256 of each signed file, hexadecimal, by its path in the folder.

        Raises:
            AdapterError: it was made with another key, changed, or is no signature.
        """
        from cryptography.exceptions import InvalidSignature

        try:
            envelope = strict_json(content, label)["dsseEnvelope"]
            (one,) = envelope["signatures"]
            payload, made = (
                base64.b64decode(text, validate=True) for text in (envelope["payload"], one["sig"])
            )
            self._key.verify(made, _enveloped(payload), _ecdsa(self._key.curve))
            # From here on it is the signer who speaks.
            statement = strict_json(payload, label)
            kinds = [envelope["payloadType"], statement["_type"], statement["predicateType"]]
            if kinds != [PAYLOAD, STATEMENT, PREDICATE]:
                raise ValueError(f"it signs {kinds}")
            told = statement["predicate"]["resources"]
            sums = {str(one["name"]): str(one["digest"]) for one in told}
            if len(sums) != len(told) or {one["algorithm"] for one in told} != {"sha256"}:
                raise ValueError("it names a file twice, or by another hash than SHA-256")
        except InvalidSignature as error:
            raise AdapterError(
                f"{label} was made with another key than the required one, or was changed"
            ) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise AdapterError(
                f"{label} is no signature that can be read ({error!s:.200}); sign the folder again "
                "with `laura sign`"
            ) from error
        return sums


def check_signed(signed: dict[str, str], found: dict[str, str | None], label: Path) -> None:
    """Compare what was found of a folder with what was signed.

    Args:
        signed: As `signed_files` gave it.
        found: SHA-256 of each file that matters; None where there is none.
        label: What the folder is called in messages.

    Raises:
        AdapterError: a file is another one, was not signed, or is not there any more.
    """
    for name, digest in found.items():
        if signed.get(name) != digest:
            why = "was not signed" if name not in signed else "is not the one that was signed"
            why = "was signed and is not there" if digest is None else why
            raise AdapterError(
                f"{label / name} {why}; copy the folder again, or sign it if it is meant so"
            )


def _load(path: Path, private: bool) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise MissingExtraError(
            "signatures need cryptography: python -m pip install 'laura-lab[signing]'"
        ) from error
    with disk_faults(path):
        content = read_bounded(path, MOST_CONFIG_BYTES)
    try:
        key: Any
        if private:
            key = serialization.load_pem_private_key(content, None)
        else:
            key = serialization.load_pem_public_key(content)
        if not isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
            raise ValueError("it is on no elliptic curve")
        _ecdsa(key.curve)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        kind = "private" if private else "public"
        raise UsageError(
            f"{path} holds no {kind} key that can be used ({error!s:.200}); a PEM file, not "
            f"encrypted, of the curve P-256, P-384 or P-521 can; {MAKE_KEYS}"
        ) from error
    return key


def _ecdsa(curve: EllipticCurve) -> ECDSA:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    known: dict[str, hashes.HashAlgorithm] = {
        "secp256r1": hashes.SHA256(),
        "secp384r1": hashes.SHA384(),
        "secp521r1": hashes.SHA512(),
    }
    if curve.name not in known:
        raise ValueError(f"the curve is {curve.name}")
    return ec.ECDSA(known[curve.name])


def _enveloped(payload: bytes) -> bytes:
    """What is signed of a payload: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _hint(key: Any) -> str:
    """By which OpenSSF's verifier knows a key."""
    from cryptography.hazmat.primitives import serialization as forms

    pem = key.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()
