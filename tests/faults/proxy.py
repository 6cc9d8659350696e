"""A fault proxy: HTTP/1.1 between an S3 client and its server, which does harm by a plan.

In: requests of clients that take the proxy for the server. Out: the server's answers, or what the
plan's faults make of them, and a record of every request. Heads are passed on as they came, the
Host header too, because the client's signature covers it.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tests.faults.plan import HARMS_A_BODY, Fault, Kind, Plan, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_BODY = "<Error><Code>{0}</Code><Message>made by the fault proxy</Message></Error>"
_ANSWERS = {Kind.SLOW_DOWN: (503, "SlowDown"), Kind.ERROR: (500, "InternalError")}
UPSTREAM_SECONDS = 60.0


@dataclass
class Answer:
    """A whole answer of the server."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


class Proxy(ThreadingHTTPServer):
    """The proxy, on a free port of 127.0.0.1. `running` starts it and ends it."""

    daemon_threads = False  # closing waits for every connection's thread
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.plan = Plan()
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._records: list[Record] = []

    def use(self, *faults: Fault) -> None:
        """Replaces the plan, counts and clock included. Without faults it only forwards."""
        self.plan = Plan(faults)

    def records(self) -> list[Record]:
        """Every request so far, in the order in which they ended."""
        with self._lock:
            return list(self._records)

    def forget(self) -> None:
        """Begins the record anew."""
        with self._lock:
            self._records.clear()

    def note(self, record: Record) -> None:
        """Adds a request to the record."""
        with self._lock:
            self._records.append(record)

    @contextmanager
    def tracked(self, connection: socket.socket) -> Iterator[None]:
        """Lets the proxy wake a thread that waits for this connection when it closes."""
        with self._lock:
            self._sockets.add(connection)
            if self.closing.is_set():
                _shut(connection)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(connection)

    def close(self) -> None:
        """Ends every connection and its thread."""
        self.closing.set()
        self.shutdown()
        with self._lock:
            for connection in self._sockets:
                _shut(connection)
        self.server_close()

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Closes without an orderly end first, so that a reset stays one."""
        self.close_request(request)

    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """A client that goes away is none; anything else is the proxy's own mistake."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextmanager
def running(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of the server at `upstream`, for the length of a `with` block."""
    proxy = Proxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()


class _Connection(BaseHTTPRequestHandler):
    """One client connection: its requests one after another, answered or harmed."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def handle(self) -> None:
        with self.server.tracked(self.connection):
            super().handle()

    def forward(self) -> None:
        self.target = self.requestline.split()[1]
        self.done: list[Kind] = []
        body = self._read_body()
        harm: Kind | None = None
        for fault in self.server.plan.meets(self.command, self.target):
            if fault.kind == Kind.LATE:
                self.done.append(fault.kind)
                self.server.closing.wait(fault.seconds)
            else:
                harm = fault.kind
        if harm and harm not in (*HARMS_A_BODY, Kind.LOST):
            self._refuse(harm)
        else:
            self._pass_on(body, harm)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

    def _refuse(self, harm: Kind) -> None:
        """Ends a request that never reaches the server."""
        self.done.append(harm)
        if harm in _ANSWERS:
            status, code = _ANSWERS[harm]
            head = [("Content-Type", "application/xml")]
            self._tell(Answer(status, code, head, _BODY.format(code).encode()))
            return
        self._reset()
        while harm == Kind.HANG and not self.server.closing.is_set():
            if select.select([self.connection], [], [], 0.05)[0]:
                break  # the client has given up

    def _pass_on(self, body: bytes, harm: Kind | None) -> None:
        """Asks the server, and tells the client what it said, or harms that."""
        try:
            answer = self._ask(body)
        except (OSError, HTTPException):  # the server is gone: for the client, so is the proxy
            self._reset()
            return
        if self.server.plan.is_out(self.command, self.target):
            harm = Kind.OUTAGE
        if harm in HARMS_A_BODY and answer.body and answer.status in (200, 206):
            self._tell(answer, harm)
        elif harm in (Kind.LOST, Kind.OUTAGE):
            self.done.append(harm)
            self._reset()
        else:
            self._tell(answer)

    def _note(self, status: int | None) -> None:
        """Before the client learns of it, so that whoever has an answer finds it in the record."""
        parts = urlsplit(self.target)
        done = tuple(self.done)
        record = Record(self.command, unquote(parts.path), parts.query, status, done)
        self.server.note(record)

    def _reset(self) -> None:
        """Ends the connection with RST as soon as this request is over."""
        self._note(None)
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def _read_body(self) -> bytes:
        """The request's body as it is framed, chunks and trailers included."""
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        raw = bytearray()
        while size := self._line_into(raw).partition(b";")[0].strip():
            if int(size, 16) == 0:
                while self._line_into(raw).strip():
                    pass  # trailers
                break
            raw += self.rfile.read(int(size, 16) + 2)
        return bytes(raw)

    def _line_into(self, raw: bytearray) -> bytes:
        line = self.rfile.readline()
        raw += line
        return line

    def _ask(self, body: bytes) -> Answer:
        """Sends the request on, and reads the whole answer."""
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        raw = f"{self.requestline}\r\n{head}\r\n".encode("latin-1") + body
        with (
            socket.create_connection(self.server.upstream, UPSTREAM_SECONDS) as upstream,
            self.server.tracked(upstream),
        ):
            upstream.sendall(raw)
            with HTTPResponse(upstream, method=self.command) as response:
                response.begin()
                body = response.read()
                return Answer(response.status, response.reason, response.getheaders(), body)

    def _tell(self, answer: Answer, harm: Kind | None = None) -> None:
        """Sends an answer, whole or with its body harmed."""
        body, length = answer.body, str(len(answer.body))
        if self.command == "HEAD":  # it says how long the body would be
            told = (value for name, value in answer.headers if name.lower() == "content-length")
            length = next(told, "0")
        if harm:
            self.done.append(harm)
            half = len(body) // 2
            truncated = harm == Kind.TRUNCATED
            self.close_connection |= truncated
            body = body[:half] + (b"" if truncated else bytes([body[half] ^ 1]) + body[half + 1 :])
        self._note(answer.status)
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if answer.status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself
