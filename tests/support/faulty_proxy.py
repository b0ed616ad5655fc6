"""A proxy before a tracking server, which fails in a chosen way or answers with a chosen status."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_HEADERS = {"host", "connection", "transfer-encoding"}


class FaultyProxy:
    """What the proxy does with a request.

    Attributes:
        mode: `ok`, `down`, `hang`, `slow`, or the HTTP status of each response.
        refused: Bytes in the body of a request that gets a 400, whatever the mode.
        answered: The number of requests by mode.
    """

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.mode = "ok"
        self.refused: bytes | None = None
        self.answered: Counter[str] = Counter()
        self.changed = threading.Event()
        self.url = ""

    def change(self, mode: str) -> None:
        """Change the mode; requests that hang are cut."""
        self.mode = mode
        self.changed.set()
        self.changed = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    # One request a connection, so that no thread waits for the next.
    protocol_version = "HTTP/1.0"
    proxy: FaultyProxy

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        mode, changed = self.proxy.mode, self.proxy.changed
        self.proxy.answered[mode] += 1
        if mode in ("down", "hang"):
            changed.wait(600 if mode == "hang" else 0)
            self.close_connection = True
            return
        if mode == "slow":
            changed.wait(5)
        if self.proxy.refused and self.proxy.refused in body:
            self.answer(400, b"refused", "text/plain")
        elif mode.isdigit():
            self.answer(int(mode), b"out of order", "text/plain")
        else:
            self.answer(*self.ask_upstream(body))

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

    def ask_upstream(self, body: bytes) -> tuple[int, bytes, str]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream_port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_HEADERS}
        try:
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            return answer.status, answer.read(), answer.getheader("content-type", "")
        except OSError:
            return 502, b"no tracking server", "text/plain"
        finally:
            upstream.close()

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def faulty_proxy(upstream_port: int) -> Iterator[FaultyProxy]:
    """Run a proxy before a server of this machine; yield it."""
    proxy = FaultyProxy(upstream_port)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="faulty-proxy")
    thread.start()
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield proxy
    finally:
        proxy.change("down")
        server.shutdown()
        thread.join()
        server.server_close()


def wait_for_requests(proxy: FaultyProxy, mode: str, count: int, seconds: float = 120) -> None:
    """Wait until the proxy has got some requests in a mode."""
    deadline = time.monotonic() + seconds
    while proxy.answered[mode] < count:
        assert time.monotonic() < deadline, f"{proxy.answered[mode]} requests in {seconds} s"
        time.sleep(0.02)
