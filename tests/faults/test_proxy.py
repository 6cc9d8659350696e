"""The fault proxy: every kind of fault as a client sees it and as the server sees it."""

from __future__ import annotations

import http.client
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.fs
import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    IncompleteReadError,
    ReadTimeoutError,
)

from tests.faults import proxy, servers
from tests.faults.plan import Fault, Kind

pytestmark = pytest.mark.faults

BODY = bytes(range(256)) * 40


class Bucket:
    """One key, asked for through the proxy and, to see what is true, at the server itself."""

    def __init__(self, store, endpoint, key):
        self.store, self.through, self.key = store, store.at(endpoint), key
        self._clients = {}

    def client(self, direct=False, seconds=60.0):
        if (direct, seconds) not in self._clients:
            store = self.store if direct else self.through
            self._clients[direct, seconds] = store.client(seconds)
        return self._clients[direct, seconds]

    def put(self, body=BODY, **more):
        self.client(**more).put_object(Bucket=self.store.bucket, Key=self.key, Body=body)

    def get(self, **more):
        asked = self.client(**more).get_object(Bucket=self.store.bucket, Key=self.key)
        with asked["Body"] as body:
            return body.read()

    def is_there(self):
        found = self.client(direct=True).list_objects_v2(Bucket=self.store.bucket, Prefix=self.key)
        return found["KeyCount"] == 1

    def close(self):
        for client in self._clients.values():
            client.close()


@pytest.fixture
def bucket(server, faulty, tmp_path):
    bucket = Bucket(server.store, faulty.endpoint, f"proxy/{tmp_path.name}/a b+ü.bin")
    yield bucket
    bucket.close()


@contextmanager
def served_by(handler):
    """A proxy before a server of our own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as upstream:
        serving = threading.Thread(target=upstream.serve_forever, args=(0.05,))
        serving.start()
        try:
            with proxy.running(f"http://127.0.0.1:{upstream.server_port}") as before:
                yield before
        finally:
            upstream.shutdown()
            serving.join()


def connected(before):
    connection = http.client.HTTPConnection("127.0.0.1", before.server_port, timeout=60)
    connection.connect()
    return connection


def test_without_faults_it_only_forwards_and_records(bucket, faulty):
    bucket.put()
    assert bucket.get() == BODY == bucket.get(direct=True)
    head = bucket.client().head_object(Bucket=bucket.store.bucket, Key=bucket.key)
    assert head["ContentLength"] == len(BODY)
    with pytest.raises(ClientError, match="404"):
        bucket.client().head_object(Bucket=bucket.store.bucket, Key=bucket.key + "2")
    bucket.client().delete_object(Bucket=bucket.store.bucket, Key=bucket.key)
    assert not bucket.is_there()
    records = faulty.records()
    assert [(r.method, r.status) for r in records] == [
        ("PUT", 200), ("GET", 200), ("HEAD", 200), ("HEAD", 404), ("DELETE", 204),
    ]  # fmt: skip
    assert records[0].path == f"/{bucket.store.bucket}/{bucket.key}"
    assert {record.faults for record in records} == {()}


@pytest.mark.parametrize("server", ["seaweedfs"], indirect=True)
def test_the_server_checks_signatures_behind_it_too(server, faulty):
    stranger = servers.Store(faulty.endpoint, server.store.access_key, "wrong", server.store.bucket)
    client = stranger.client()
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.list_objects_v2(Bucket=stranger.bucket)
    client.close()


@pytest.mark.parametrize(
    ("kind", "reaches_the_server"), [(Kind.RESET, False), (Kind.OUTAGE, False), (Kind.LOST, True)]
)
def test_a_reset_connection_before_and_after_the_deed(bucket, faulty, kind, reaches_the_server):
    faulty.use(Fault(kind, method="PUT"))
    with pytest.raises(ConnectionClosedError):
        bucket.put()
    assert bucket.is_there() == reaches_the_server
    (record,) = faulty.records()
    assert (record.method, record.status, record.faults) == ("PUT", None, (kind,))


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [(Kind.SLOW_DOWN, 503, "SlowDown"), (Kind.ERROR, 500, "InternalError")],
)
def test_an_answer_of_failure_is_one_of_s3_and_nothing_is_done(bucket, faulty, kind, status, code):
    faulty.use(Fault(kind))
    with pytest.raises(ClientError) as failed:
        bucket.put()
    assert failed.value.response["Error"]["Code"] == code
    assert failed.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    with pytest.raises(ClientError, match=str(status)):
        bucket.client().head_object(Bucket=bucket.store.bucket, Key=bucket.key)
    faulty.use()
    assert not bucket.is_there()
    assert [(r.status, r.faults) for r in faulty.records()] == [(status, (kind,))] * 2


def test_a_truncated_answer_ends_after_half_of_what_it_announced(bucket, faulty):
    bucket.put()
    faulty.use(Fault(Kind.TRUNCATED))
    asked = bucket.client().get_object(Bucket=bucket.store.bucket, Key=bucket.key)
    assert asked["ContentLength"] == len(BODY)
    with pytest.raises((IncompleteReadError, BotoCoreError), match=f"{len(BODY) // 2}"):
        asked["Body"].read()
    asked["Body"].close()
    faulty.use()
    assert bucket.get() == BODY


def test_a_flipped_byte_comes_with_an_answer_that_looks_well(bucket, faulty):
    bucket.put()
    faulty.use(Fault(Kind.FLIPPED))
    got = bucket.get()
    assert [k for k in range(len(BODY)) if got[k] != BODY[k]] == [len(BODY) // 2]
    assert len(got) == len(BODY)
    bucket.put()
    put = faulty.records()[-1]
    assert (put.method, put.faults) == ("PUT", ())
    assert bucket.get(direct=True) == BODY


def test_a_hang_lasts_until_the_client_gives_up(bucket, faulty):
    faulty.use(Fault(Kind.HANG, calls=(1,)))
    with pytest.raises(ReadTimeoutError):
        bucket.put(seconds=0.3)
    assert not bucket.is_there()
    bucket.put()
    assert [r.faults for r in faulty.records()] == [(Kind.HANG,), ()]


def test_a_late_request_is_done_even_when_nobody_waits_any_more(bucket, faulty):
    faulty.use(Fault(Kind.LATE, seconds=0.6))
    with pytest.raises(ReadTimeoutError):
        bucket.put(seconds=0.2)
    deadline = time.monotonic() + 60
    while not bucket.is_there():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert bucket.get() == BODY
    assert [r.faults for r in faulty.records()] == [(Kind.LATE,)] * 2


def test_an_outage_ends_by_itself(bucket, faulty):
    bucket.put()
    faulty.use(Fault(Kind.OUTAGE, between=(0, 1)), Fault(Kind.ERROR, between=(3600, 7200)))
    failed = 0
    while True:
        try:
            assert bucket.get() == BODY
            break
        except ConnectionClosedError:
            failed += 1
            time.sleep(0.05)
    assert failed > 0
    assert [r.faults for r in faulty.records()] == [(), *[(Kind.OUTAGE,)] * failed, ()]


def test_an_outage_keeps_back_answers_that_are_under_way():
    class Slow(BaseHTTPRequestHandler):
        def do_GET(self):
            before.use(Fault(Kind.OUTAGE))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with served_by(Slow) as before, closing(connected(before)) as connection:
        connection.request("GET", "/")
        with pytest.raises(ConnectionError):
            connection.getresponse()
        assert [r.faults for r in before.records()] == [(Kind.OUTAGE,)]


def test_a_part_of_a_multipart_upload_can_be_meant(bucket, faulty):
    client, place = bucket.client(), {"Bucket": bucket.store.bucket, "Key": bucket.key}
    upload = client.create_multipart_upload(**place)["UploadId"]
    faulty.use(Fault(Kind.RESET, method="PUT", query="*partNumber=2&*", calls=(1,)))
    parts, big = [], b"x" * (5 << 20)
    for number, body in enumerate((big, b"end"), 1):
        part = {"PartNumber": number, "UploadId": upload, "Body": io.BytesIO(body)}
        if number == 2:
            with pytest.raises(ConnectionClosedError):
                client.upload_part(**place, **part)
            part["Body"] = io.BytesIO(body)
        tag = client.upload_part(**place, **part)["ETag"]
        parts.append({"PartNumber": number, "ETag": tag})
    client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    assert bucket.get() == big + b"end"


def test_a_plan_counts_what_matches_it_across_threads(bucket, faulty):
    faulty.use(Fault(Kind.ERROR, method="GET", path="*.bin", calls=(5, 7)))
    bucket.put()
    client = bucket.client()

    def ask(_):
        try:
            client.get_object(Bucket=bucket.store.bucket, Key=bucket.key)["Body"].read()
        except ClientError:
            return 1
        return 0

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(40))) == 2
    harmed = [r.faults for r in faulty.records() if r.faults]
    assert (len(faulty.records()), harmed) == (41, [(Kind.ERROR,)] * 2)


def test_chunks_trailers_expectations_and_kept_connections_pass():
    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self):
            raw = self.rfile.read(int(self.headers["X-Raw-Length"]))
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(raw), raw))

        def log_message(self, *_):
            pass

    with served_by(Echo) as before, closing(connected(before)) as connection:
        connection.auto_open = False  # there is only the connection that is open now
        for body in (b"first", b"second " * 9000):
            raw = b"3;name=value\r\n%b\r\n" % body[:3]
            raw += b"%x\r\n%b\r\n0\r\nx-trailer: 1\r\n\r\n" % (len(body) - 3, body[3:])
            connection.putrequest("PUT", "/bucket/key")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.putheader("Expect", "100-continue")
            connection.putheader("X-Raw-Length", str(len(raw)))
            connection.endheaders()
            assert connection.sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.send(raw)
            assert connection.getresponse().read() == raw
        assert [r.status for r in before.records()] == [200] * 2


def test_arrow_writes_and_reads_through_it(bucket, faulty):
    store = bucket.through
    arrow = pyarrow.fs.S3FileSystem(
        access_key=store.access_key, secret_key=store.secret_key, region=servers.REGION,
        endpoint_override=store.endpoint.removeprefix("http://"), scheme="http",
    )  # fmt: skip
    path = f"{store.bucket}/{bucket.key}"
    with arrow.open_output_stream(path) as sink:
        sink.write(BODY)
    with arrow.open_input_file(path) as source:
        assert source.read() == BODY
    assert bucket.get(direct=True) == BODY
    assert len(faulty.records()) >= 2


def test_it_ends_with_connections_open_and_requests_hanging(server):
    before = set(threading.enumerate())
    with ThreadPoolExecutor(1) as pool:
        with proxy.running(server.store.endpoint) as faulty:
            bucket = Bucket(server.store, faulty.endpoint, "unused")
            bucket.client().list_buckets()
            faulty.use(Fault(Kind.HANG))
            hanging = pool.submit(bucket.put)
            while len(faulty.records()) < 2:
                time.sleep(0.01)
        with pytest.raises(ConnectionClosedError):
            hanging.result(timeout=60)
        bucket.close()
    assert set(threading.enumerate()) <= before


def test_a_server_that_is_gone_is_a_reset():
    (port,) = servers.free_ports(1)
    with (
        proxy.running(f"http://127.0.0.1:{port}") as before,
        closing(connected(before)) as connection,
    ):
        connection.request("GET", "/")
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)  # RST, not an orderly end
        assert [(r.status, r.faults) for r in before.records()] == [(None, ())]


@pytest.mark.parametrize("server", ["seaweedfs"], indirect=True)
def test_what_the_server_acknowledged_outlives_its_kill(server, bucket):
    bucket.put()
    server.kill()
    with pytest.raises(ConnectionClosedError):
        bucket.get()
    server.restart()
    assert bucket.get() == BODY
