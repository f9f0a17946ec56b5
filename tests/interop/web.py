"""A small web server of the standard library, and curl."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DEADLINE = "60"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    body = b""
    seen: list

    def do_GET(self):
        self.seen.append((self.command, self.path, dict(self.headers.items()), self.client_address[1]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    do_HEAD = do_GET

    def do_POST(self):
        """Answers with what was sent, in chunks."""
        data = self.received()
        self.seen.append((self.command, self.path, dict(self.headers.items()), self.client_address[1]))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(data), 50_000):
            part = data[start : start + 50_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def received(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def web(seen=None):
    """(port, body) of a server that gives 300 KB for each GET; requests are noted in ``seen``."""
    body = os.urandom(300_000)
    handler = type("Noting", (Handler,), {"body": body, "seen": [] if seen is None else seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1], body
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def bracket(host):
    """As it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def curl(*words):
    """What curl printed; raises CalledProcessError where it failed."""
    command = ["curl", "-q", "-sS", "--fail", "--noproxy", "", "--max-time", DEADLINE, *words]
    return subprocess.run(command, check=True, capture_output=True).stdout
