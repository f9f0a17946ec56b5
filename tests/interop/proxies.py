"""Foreign servers of the protocols that carry TCP and UDP inside TLS, and the certificates they show."""

from __future__ import annotations

import contextlib
import datetime
import pathlib
import ssl
import tempfile

from gateway.lab import certificate
from tests import peers
from tests.interop.harness import LOOPBACK, check_datagrams, check_stream, free_port, program, socks_connect

NAME = "proxy.test"


class Certificates:
    """Files of an authority and of a site that it vouches for; ``stale``: expired two weeks ago."""

    def __init__(self, folder, names=(NAME,), addresses=(LOOPBACK, "::1"), stale=False):
        now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=21 if stale else 0)
        for name, text in certificate.authority(names, addresses, now).items():
            (pathlib.Path(folder) / name).write_text(text)
        self.ca, self.site, self.key = (pathlib.Path(folder) / name for name in ("ca.pem", "site.pem", "site.key"))

    def client(self, **fields):
        """A ``tls`` object that believes this authority alone."""
        return {"enabled": True, "server_name": NAME, "certificate_path": str(self.ca), **fields}

    def server(self, **fields):
        """A ``tls`` object of a sing-box inbound."""
        return {"enabled": True, "certificate_path": str(self.site), "key_path": str(self.key), **fields}

    def serving(self):
        """For a server of the standard library."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.site, self.key)
        return context

    def xray(self, **fields):
        """``streamSettings`` of an Xray inbound."""
        files = {"certificateFile": str(self.site), "keyFile": str(self.key)}
        return {"network": "tcp", "security": "tls", "tlsSettings": {"certificates": [files], **fields}}


@contextlib.contextmanager
def certificates(**fields):
    with tempfile.TemporaryDirectory() as folder:
        yield Certificates(folder, **fields)


def sing_box(inbound, at=LOOPBACK):
    """(port, program): the server's end, which goes out directly; ``echo.test`` is ``at``."""
    port = free_port()
    config = {"log": {"level": "warn"}, "outbounds": [{"type": "direct"}]}
    config["inbounds"] = [{"listen": at, "listen_port": port, **inbound}]
    config["dns"] = {"servers": [{"tag": "h", "type": "hosts", "predefined": {"echo.test": at}}]}
    config["route"] = {"default_domain_resolver": "h"}
    return port, program(peers.path("sing-box"), "run", "-c", "CONFIG", config=config, ready=port, host=at)


def xray(inbound, at=LOOPBACK):
    """As ``sing_box``."""
    port = free_port()
    freedom = {"protocol": "freedom", "settings": {"finalRules": [{"action": "allow"}], "domainStrategy": "UseIP"}}
    config = {"log": {"loglevel": "warning"}, "outbounds": [freedom], "dns": {"hosts": {"echo.test": at}}}
    config["inbounds"] = [{"listen": at, "port": port, **inbound}]
    return port, program(peers.path("xray"), "CONFIG", config=config, ready=port, host=at)


def check_silence(port, target):
    """A server that does not know the client ends its flow without a byte."""
    with socks_connect(port, LOOPBACK, target) as sock:
        sock.sendall(b"hello")
        try:
            assert sock.recv(1) == b""
        except ConnectionResetError:  # it may not even have read
            pass


def check(port, target, host=LOOPBACK, at=LOOPBACK):
    """A stream and datagrams through the SOCKS inbound at ``port``."""
    check_stream(socks_connect(port, host, target, at=at))
    check_datagrams(port, host, target, at=at)
