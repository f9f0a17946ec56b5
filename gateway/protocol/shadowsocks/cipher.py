"""Shadowsocks methods: AEADs, key sizes, passwords to keys, keys to session subkeys. Pure.

SIP004 and SIP007 for the AEAD methods, SIP022 and SIP023 for the 2022 ones.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from gateway.core.stream import Buffer

TAG = 16


class AEAD(Protocol):
    """The calls used of ``cryptography``'s AEAD classes; both return the bytes written."""

    def encrypt_into(self, nonce: Buffer, data: Buffer, aad: Buffer | None, buf: Buffer) -> int: ...

    def decrypt_into(self, nonce: Buffer, data: Buffer, aad: Buffer | None, buf: Buffer) -> int: ...


_CONSTANT = struct.unpack("<4I", b"expand 32-byte k")
_ZERO = bytes(64)


class XChaCha20Poly1305:
    """draft-irtf-cfrg-xchacha-03. HChaCha20 is had from one ChaCha20 block: its output is the block without the final
    addition of the first and last four state words, and those (constants and nonce) are known."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._inner = lru_cache(maxsize=1)(self._derive)

    def _derive(self, head: bytes) -> ChaCha20Poly1305:
        block = Cipher(algorithms.ChaCha20(self._key, head), None).encryptor().update(_ZERO)
        words = struct.unpack("<16I", block)
        known = (*_CONSTANT, *struct.unpack("<4I", head))
        mixed = [(word - start) & 0xFFFFFFFF for word, start in zip(words[:4] + words[12:], known, strict=True)]
        return ChaCha20Poly1305(struct.pack("<8I", *mixed))

    def encrypt_into(self, nonce: Buffer, data: Buffer, aad: Buffer | None, buf: Buffer) -> int:
        nonce = bytes(nonce)
        return self._inner(nonce[:16]).encrypt_into(bytes(4) + nonce[16:], data, aad, buf)

    def decrypt_into(self, nonce: Buffer, data: Buffer, aad: Buffer | None, buf: Buffer) -> int:
        nonce = bytes(nonce)
        return self._inner(nonce[:16]).decrypt_into(bytes(4) + nonce[16:], data, aad, buf)


@dataclass(frozen=True, slots=True)
class Method:
    """One ``method``. ``salt`` has the size of the key; ``aead`` is None for ``none``."""

    name: str
    key: int = 0
    """Bytes of key and of salt."""
    aead: Callable[[bytes], AEAD] | None = None
    nonce: int = 12
    modern: bool = False
    """2022 edition."""
    chunk: int = 0x3FFF
    """Most payload bytes of one chunk."""

    @property
    def identities(self) -> bool:
        """Whether it has identity headers (several users on one key, SIP023): the AES methods of 2022."""
        return self.modern and "aes" in self.name

    def open(self, key: bytes) -> AEAD:
        assert self.aead is not None
        return self.aead(key)

    def subkey(self, key: bytes, salt: bytes) -> bytes:
        """Session key of ``key`` (main key or PSK) and ``salt`` (in 2022 UDP: the session id)."""
        if self.modern:
            return derive("shadowsocks 2022 session subkey", key + salt, self.key)
        return hkdf_sha1(key, salt, b"ss-subkey", self.key)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("none"),
        Method("aes-128-gcm", 16, AESGCM),
        Method("aes-192-gcm", 24, AESGCM),
        Method("aes-256-gcm", 32, AESGCM),
        Method("chacha20-ietf-poly1305", 32, ChaCha20Poly1305),
        Method("xchacha20-ietf-poly1305", 32, XChaCha20Poly1305, nonce=24),
        Method("2022-blake3-aes-128-gcm", 16, AESGCM, modern=True, chunk=0xFFFF),
        Method("2022-blake3-aes-256-gcm", 32, AESGCM, modern=True, chunk=0xFFFF),
        Method("2022-blake3-chacha20-poly1305", 32, ChaCha20Poly1305, modern=True, chunk=0xFFFF),
    )
}


def hkdf_sha1(key: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 with SHA-1."""
    secret = hmac.digest(salt, key, "sha1")
    out = block = b""
    count = 1
    while len(out) < size:
        block = hmac.digest(secret, block + info + bytes((count,)), "sha1")
        out += block
        count += 1
    return out[:size]


def derive(context: str, material: bytes, size: int) -> bytes:
    """BLAKE3 in key derivation mode."""
    return blake3(material, derive_key_context=context).digest(length=size)


def password_key(password: str, size: int) -> bytes:
    """EVP_BytesToKey with MD5 and no salt: the main key of the AEAD methods."""
    out = block = b""
    while len(out) < size:
        block = hashlib.md5(block + password.encode(), usedforsecurity=False).digest()
        out += block
    return out[:size]


def psk(method: Method, text: str) -> bytes:
    """A 2022 PSK: base64 of exactly the method's key size. Raises ValueError with what to write."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the key of {method.name} is base64 text of {method.key} bytes") from None
    if len(key) != method.key:
        raise ValueError(f"the key of {method.name} is base64 of {method.key} bytes, not of {len(key)}")
    return key


def main_key(method: Method, password: str) -> bytes:
    """The key of one password. Raises ValueError."""
    if not method.key:
        return b""
    if method.modern:
        return psk(method, password)
    if not password:
        raise ValueError(f"{method.name} needs a password")
    return password_key(password, method.key)


def client_keys(method: Method, password: str) -> tuple[bytes, ...]:
    """The keys of a client, identity keys first, its own last: ``iPSK:...:uPSK`` in 2022, else one. Raises
    ValueError."""
    if not method.modern:
        return (main_key(method, password),)
    keys = tuple(psk(method, part) for part in password.split(":"))
    if len(keys) > 1 and not method.identities:
        raise ValueError(f"{method.name} has no identity keys; write one key without a colon")
    return keys


def identity(key: bytes) -> bytes:
    """What names a key in an identity header: the first 16 bytes of its BLAKE3 hash."""
    return blake3(key).digest()[:16]


def identity_key(key: bytes, salt: bytes) -> bytes:
    """Subkey that encrypts an identity header of a TCP stream."""
    return derive("shadowsocks 2022 identity subkey", key + salt, len(key))


def ecb_encryptor(key: bytes) -> CipherContext:
    """AES of single blocks; may be used for any number of 16-byte blocks."""
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor()


def ecb_decryptor(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.ECB()).decryptor()
