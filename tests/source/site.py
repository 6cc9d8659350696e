"""A web server in this process that answers well or badly, and policies that allow it."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

from pnp_batch.source import SourcePolicy
from tests.pictures import PNG

SECRET = "hunter2"


def policy_for(*hosts, **limits):
    return SourcePolicy(base=".", hosts=hosts, **{"attempts": 1} | limits)


class Site(http.server.ThreadingHTTPServer):
    """Answers `/name` with `routes['name']`: a body, (status, headers, body), or a function."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes, self.hits = {"a.png": PNG}, []
        self.address = f"127.0.0.1:{self.server_port}"

    def uri(self, name, host="127.0.0.1"):
        return f"http://{host}:{self.server_port}/{name}"

    def handle_error(self, request, client_address):
        """A client that hangs up is what these tests are about."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.hits.append(self.path)
        self.close_connection = True
        route = self.server.routes.get(urlsplit(self.path).path[1:], (404, {}, b""))
        if callable(route):
            route(self.wfile)
            return
        status, headers, body = route if isinstance(route, tuple) else (200, {}, route)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        """Quiet."""


@contextmanager
def serving():
    server = Site()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
