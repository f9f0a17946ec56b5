"""The TLS layer against OpenSSL's server end, in memory."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from pathlib import Path

import pytest

from gateway.core.errors import ConfigError, PeerError
from gateway.lab import certificate
from gateway.tls.client import Client
from gateway.tls.context import context
from gateway.tls.options import OutboundTLSOptions
from gateway.tls.verdict import is_for

# That TLS 1.0 and 1.1 are old is why their options exist.
pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
NAMES = ("proxy.test", "*.wild.test")
ADDRESSES = ("192.0.2.1", "2001:db8::1")


def made(days: int = 0) -> dict[str, str]:
    return certificate.authority(NAMES, ADDRESSES, datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name, text in made().items():
        (folder / name).write_text(text)
    return folder


class Server:
    """Its end, and the way between."""

    def __init__(self, files: Path, version: ssl.TLSVersion | None = None, alpn: list[str] | None = None) -> None:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(files / "site.pem", files / "site.key")
        made.set_ciphers("ALL:@SECLEVEL=0")
        made.minimum_version = version or ssl.TLSVersion.TLSv1
        made.maximum_version = version or ssl.TLSVersion.TLSv1_3
        if alpn:
            made.set_alpn_protocols(alpn)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.name: str | None = None
        made.sni_callback = lambda _, name, __: setattr(self, "name", name)
        self.tls = made.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def shake(self, data: bytes) -> bytes:
        self.incoming.write(data)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()


def options(files: Path, **fields: object) -> OutboundTLSOptions:
    return OutboundTLSOptions(**{"enabled": True, "certificate_path": "ca.pem", **fields})  # type: ignore[arg-type]


def connect(server: Server, files: Path, name: str = "proxy.test", **fields: object):  # type: ignore[no-untyped-def]
    layer = Client(options(files, **fields), name, files).layer()
    data = b""
    while not layer.shake(data):
        data = server.shake(bytes(layer.encode(b"")))
    layer.decode(server.shake(bytes(layer.encode(b""))))
    return layer


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_ways_at_every_size(files: Path, version: ssl.TLSVersion) -> None:
    server = Server(files, version)
    layer = connect(server, files)
    assert server.name == "proxy.test"
    for size in (1, 16383, 16384, 16385, 100_000, 300_000):
        data = bytes(range(251)) * (size // 251 + 1)
        data = data[:size]
        server.incoming.write(layer.encode(data))
        found = b""
        while len(found) < size:
            found += server.tls.read(size)
        assert found == data
        sent = 0
        while sent < size:
            sent += server.tls.write(memoryview(data)[sent:])
        wire = server.outgoing.read()
        step = max(size // 3, 1)
        found = b"".join(bytes(layer.decode(wire[start : start + step])) for start in range(0, len(wire), step))
        assert found == data
    wire = b""
    for byte in b"abc":
        server.tls.write(bytes((byte,)))
    wire = server.outgoing.read()
    assert b"".join(bytes(layer.decode(wire[at : at + 1])) for at in range(len(wire))) == b"abc"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_each_way_ends_by_itself(files: Path, version: ssl.TLSVersion) -> None:
    server = Server(files, version)
    layer = connect(server, files)
    server.tls.write(b"before")
    early = server.outgoing.read()
    server.incoming.write(layer.encode_eof())
    assert server.tls.read(10) == b""
    server.tls.write(b" and after")
    assert bytes(layer.decode(early)) == b"before"
    late = server.outgoing.read()
    assert bytes(layer.decode(late[:9])) == b""
    assert bytes(layer.decode(late[9:])) == b" and after"
    assert not layer.ended
    server.tls.unwrap()
    layer.decode(server.outgoing.read())
    assert layer.ended


@pytest.mark.parametrize("size", [1, 10_000, 40_000, 300_000])
@pytest.mark.parametrize("first", ["we", "they"])
def test_data_and_the_end_in_one_piece(files: Path, size: int, first: str) -> None:
    server = Server(files)
    layer = connect(server, files)
    if first == "we":
        server.incoming.write(layer.encode_eof())
        assert server.tls.read(10) == b""
    data, sent = bytes(range(250)) * (size // 250 + 1), 0
    while sent < size:
        sent += server.tls.write(memoryview(data)[sent:size])
    with contextlib.suppress(ssl.SSLWantReadError):
        server.tls.unwrap()
    assert bytes(layer.decode(server.outgoing.read())) == data[:size]
    assert layer.ended
    assert bytes(layer.decode(b"")) == b""


def test_the_peer_may_end_first(files: Path) -> None:
    server = Server(files)
    layer = connect(server, files)
    server.tls.write(b"last words")
    with pytest.raises(ssl.SSLWantReadError):
        server.tls.unwrap()
    assert bytes(layer.decode(server.outgoing.read())) == b"last words"
    assert layer.ended
    server.incoming.write(layer.encode(b"heard"))
    server.incoming.write(layer.encode_eof())


def test_bytes_that_are_wrong(files: Path) -> None:
    server = Server(files)
    layer = connect(server, files)
    server.tls.write(b"hello")
    wire = bytearray(server.outgoing.read())
    wire[-1] ^= 1
    with pytest.raises(PeerError, match="does not verify"):
        layer.decode(wire)


@pytest.mark.parametrize(
    "name", ["proxy.test", "a.wild.test", "192.0.2.1", "2001:db8::1", "[2001:db8::1]", "Proxy.Test."]
)
@pytest.mark.parametrize("hidden", [False, True])
def test_names_that_are_right(files: Path, name: str, hidden: bool) -> None:
    server = Server(files)
    connect(server, files, name, disable_sni=hidden)
    plain = not hidden and not name.strip("[").startswith("2001") and not name.startswith("192")
    assert (server.name or "").lower() == (name.lower().rstrip(".") if plain else "")


@pytest.mark.parametrize(
    "name", ["other.test", "wild.test", "b.a.wild.test", "laboratory site", "192.0.2.2", "2001:db8::2"]
)
@pytest.mark.parametrize("hidden", [False, True])
def test_names_that_are_wrong(files: Path, name: str, hidden: bool) -> None:
    with pytest.raises(PeerError, match=f'not for "{name}"'):
        connect(Server(files), files, name, disable_sni=hidden)
    connect(Server(files), files, name, disable_sni=hidden, insecure=True)


def test_authorities(files: Path, tmp_path: Path) -> None:
    for name, text in made().items():
        (tmp_path / name).write_text(text)
    with pytest.raises(PeerError, match="authority that is not known"):
        connect(Server(tmp_path), files)
    with pytest.raises(PeerError, match="not known here"):
        connect(Server(files), files, certificate_path="")
    lines = (files / "ca.pem").read_text().splitlines()
    connect(Server(files), files, certificate=["# Ünser own", *lines], certificate_path="")
    # What is believed need not be its own issuer.
    connect(Server(files), files, certificate_path="site.pem")
    for name, text in made(days=21).items():
        (tmp_path / name).write_text(text)
    with pytest.raises(PeerError, match="has expired"):
        connect(Server(tmp_path), tmp_path)


def test_alpn(files: Path) -> None:
    assert connect(Server(files, alpn=["h2"]), files, alpn=["x", "h2"]).protocol == "h2"
    assert connect(Server(files), files, alpn="h2").protocol == ""


def test_versions(files: Path) -> None:
    with pytest.raises((PeerError, ssl.SSLError)):
        connect(Server(files, ssl.TLSVersion.TLSv1_1), files)
    for text, version in (("1.0", ssl.TLSVersion.TLSv1), ("1.1", ssl.TLSVersion.TLSv1_1)):
        server = Server(files, version)
        connect(server, files, min_version=text)
        assert server.tls.version() in ("TLSv1", "TLSv1.1")
    server = Server(files)
    connect(server, files, max_version="1.2")
    assert server.tls.version() == "TLSv1.2"


def test_cipher_suites(files: Path) -> None:
    server = Server(files)
    connect(server, files, max_version="1.2", cipher_suites="TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256")
    assert (server.tls.cipher() or ("",))[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"
    server = Server(files)
    connect(server, files, cipher_suites=["TLS_AES_128_GCM_SHA256"])
    assert server.tls.version() == "TLSv1.3"


@pytest.mark.parametrize(
    "fields",
    [
        {"min_version": "1.3", "max_version": "1.2"},
        {"max_version": "1.1"},
        {"alpn": [""]},
        {"cipher_suites": ["TLS_RSA_WITH_RC4_128_SHA"]},
        {"certificate": ["nonsense"]},
        {"certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
    ],
)
def test_options_that_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"version|alpn|suite|certificate"):
        OutboundTLSOptions(**fields)  # type: ignore[arg-type]


def test_files_that_are_refused(files: Path) -> None:
    for name, said in (("none.pem", "No such file"), ("site.key", "no certificate in it")):
        with pytest.raises(ConfigError, match=said) as caught:
            Client(options(files, certificate_path=name), "proxy.test", files)
        assert caught.value.path == "certificate_path"
    with pytest.raises(ConfigError):
        Client(options(files), "", files)


def test_alike_is_shared(files: Path) -> None:
    one = options(files).demands("")
    assert context(one) is context(options(files, server_name="b").demands(""))
    assert context(one) is not context(options(files, insecure=True).demands(""))


def test_wildcards_are_whole_first_labels() -> None:
    found = {"subjectAltName": (("DNS", "*.a.test"), ("DNS", "b*.c.test"), ("IP Address", "192.0.2.1"))}
    assert is_for(found, "x.a.test")
    for name in ("a.test", "y.x.a.test", ".a.test", "bx.c.test", "192.0.2.1.a.test", "192.0.2.9"):
        assert not is_for(found, name)
