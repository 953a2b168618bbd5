"""The signature of a variant: Ed25519 (RFC 8032) over everything else that its manifest says.

The manifest holds the digest of every file, so one signature stands for the whole folder. It is a field of the
manifest, made over the document's canonical text: keys in order, no white space. Whoever holds the public key checks it
offline.
The worker signs what a run left behind; the run itself, which opens strangers' files, never sees the key.
"""

import base64
import binascii
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from foundry.engine.workspace import write_json
from foundry.errors import ArtifactDamaged, InvalidSettings, NotTrusted

KEY_FILE = "signing-key.pem"
PUBLIC_KEY_FILE = "signing-key.pub"
_FIELD = "signature"
_CONTEXT = b"foundry variant manifest 1\n"
"""Stands before what is signed: a signature made for anything else is none for a manifest."""
_PREFIX = "ed25519:"
_RAW_BYTES = 32


class SigningKey:
    """The private key of an installation."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def read_or_make(cls, path: Path) -> "SigningKey":
        """The key in a PEM file, readable by its owner alone; whoever comes first makes it, and its public half beside.

        Raises `InvalidSettings` when the file holds something else.
        """
        if not path.exists():
            _make(path)
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise InvalidSettings(f"{path} holds no key without a password: {error}; name another file") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise InvalidSettings(f"{path} holds another kind of key than Ed25519; name another file")
        return cls(private)

    @property
    def public(self) -> str:
        """The public half as one word, to be given to whoever checks: ed25519:BASE64."""
        return _PREFIX + base64.b64encode(self._private.public_key().public_bytes_raw()).decode()

    def sign(self, manifest: Path) -> None:
        """Put the signature into a manifest; one that is there is replaced."""
        document = read_document(manifest)
        value = base64.b64encode(self._private.sign(_signed_bytes(document))).decode()
        write_json(manifest, {**document, _FIELD: {"key": self.public, "value": value}})


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(*form))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(aside, path)  # fails when another process was quicker: its key counts
    except FileExistsError:
        return
    finally:
        aside.unlink()
    path.with_suffix(".pub").write_text(SigningKey(key).public + "\n", encoding="ascii")


def check_signature(manifest: Path, trusted: str | None = None) -> str:
    """The public key whose signature the manifest carries.

    `trusted` is the only key that will do; without it any key's signature shows that nothing was edited since, and
    whose key it is remains to be judged. Raises `NotTrusted` when there is no signature or another's, and
    `ArtifactDamaged` when the manifest is not what was signed.
    """
    document = read_document(manifest)
    signature = document.get(_FIELD)
    if signature is None:
        raise NotTrusted(f"{manifest} carries no signature; nothing shows that it is as it was made")
    try:
        key, value = str(signature["key"]), base64.b64decode(signature["value"], validate=True)
        public = _public_key(key)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactDamaged(f"{manifest}: the signature cannot be read: {error!r}") from error
    if trusted is not None and key != trusted:
        raise NotTrusted(f"{manifest} is signed by {key}, not by {trusted}; ask whoever gave you the variant")
    try:
        public.verify(value, _signed_bytes(document))
    except InvalidSignature as error:
        raise ArtifactDamaged(
            f"{manifest} is not what was signed: it, or its signature, was edited. Download or export the variant again"
        ) from error
    return key


def read_public_key(given: str) -> str:
    """A public key from the command line: the word itself, or a file that holds it. Raises `InvalidSettings`."""
    path = Path(given)
    word = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else given.strip()
    try:
        _public_key(word)
    except ValueError as error:
        raise InvalidSettings(
            f"{given!r:.100} is neither a public key nor a file with one: it looks like {_PREFIX}BASE64, and the "
            f"service keeps its own in {PUBLIC_KEY_FILE} of its folder"
        ) from error
    return word


def _public_key(word: str) -> Ed25519PublicKey:
    if not word.startswith(_PREFIX):
        raise ValueError(f"no {_PREFIX} in {word!r:.80}")
    try:
        raw = base64.b64decode(word.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{word!r:.80} is not base64") from error
    if len(raw) != _RAW_BYTES:
        raise ValueError(f"a key has {_RAW_BYTES} bytes, this has {len(raw)}")
    return Ed25519PublicKey.from_public_bytes(raw)


def read_document(manifest: Path) -> dict[str, Any]:
    """A manifest as JSON. Raises `ArtifactDamaged`, also for a key named twice, which programs read differently."""
    try:
        document = json.loads(manifest.read_bytes(), object_pairs_hook=_once)
    except FileNotFoundError as error:
        raise ArtifactDamaged(
            f"{manifest.parent} holds no {manifest.name}; it is not a variant, or was not downloaded whole"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactDamaged(f"{manifest} is not a manifest: {error}") from error
    if not isinstance(document, dict):
        raise ArtifactDamaged(f"{manifest} is not a manifest: it holds {type(document).__name__}, no object")
    return document


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is named twice")
    return found


def _signed_bytes(document: dict[str, Any]) -> bytes:
    said = {key: value for key, value in document.items() if key != _FIELD}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return _CONTEXT + text.encode("utf-8", "surrogatepass")
