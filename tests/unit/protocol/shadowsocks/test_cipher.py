"""Primitives against published vectors, and what the fast path relies on."""

from __future__ import annotations

import json
import pathlib

import pytest

from gateway.protocol.shadowsocks.cipher import METHODS, XChaCha20Poly1305, client_keys, main_key

VECTORS = json.loads((pathlib.Path(__file__).resolve().parents[3] / "vectors" / "xchacha20.json").read_text())


def test_xchacha20_poly1305():
    """draft-irtf-cfrg-xchacha-03, appendix A.3.1, without its additional data: they are checked by the AEAD inside."""
    vector = {name: bytes.fromhex(value) for name, value in VECTORS.items()}
    out = bytearray(len(vector["plain"]) + 16)
    XChaCha20Poly1305(vector["key"]).encrypt_into(vector["nonce"], vector["plain"], vector["aad"], out)
    assert out == vector["cipher"] + vector["tag"]
    back = bytearray(len(vector["plain"]))
    XChaCha20Poly1305(vector["key"]).decrypt_into(vector["nonce"], out, vector["aad"], back)
    assert back == vector["plain"]


def test_keys_of_2022_are_exact():
    method = METHODS["2022-blake3-aes-128-gcm"]
    assert len(client_keys(method, "AAAAAAAAAAAAAAAAAAAAAA==:AAAAAAAAAAAAAAAAAAAAAA==")) == 2
    for text in ("", "password", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="):
        with pytest.raises(ValueError, match="base64"):
            main_key(method, text)
    with pytest.raises(ValueError, match="identity"):
        client_keys(METHODS["2022-blake3-chacha20-poly1305"], ":".join(["A" * 43 + "="] * 2))
