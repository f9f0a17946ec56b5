"""A web server whose files are downloaded again and again: it answers well, badly, or that nothing has changed."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.interop.harness import LOOPBACK, free_port


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        web = self.server.web
        web.asked.append((self.path, dict(self.headers.items())))
        if self.path.startswith("/moved"):
            self._answer(302, {"Location": web.target}, b"")
            return
        body = web.body
        words = {"Content-Type": "application/octet-stream"}
        if web.dated:
            words["Last-Modified"] = web.dated
            same = self.headers.get("If-Modified-Since") == web.dated
        else:
            words["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
            same = self.headers.get("If-None-Match") == words["ETag"]
        if web.status == 200 and same:
            self._answer(304, words, b"")
        else:
            self._answer(web.status, words, body, web.cut)

    def _answer(self, status, words, body, cut=0):
        self.send_response(status)
        for name, value in words.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + cut))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)
        if cut:
            self.close_connection = True

    def do_HEAD(self):
        self.server.web.asked.append((self.path, dict(self.headers.items())))
        self._answer(204, {}, b"")

    def log_message(self, *args):
        pass


class Web:
    """A web server; ``body`` is what it gives for any path, ``status`` how, ``cut`` how many bytes short."""

    def __init__(self, body=b"", tls=None, port=0):
        self.port = port or free_port()
        self.body, self.status, self.cut, self.dated, self.target = body, 200, 0, "", ""
        self.asked = []
        self._tls = tls

    def __enter__(self):
        self._server = ThreadingHTTPServer((LOOPBACK, self.port), Handler)
        self._server.web, self._server.daemon_threads = self, True
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
