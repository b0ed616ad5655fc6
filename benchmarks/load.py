"""A load generator that costs little: prepared requests over raw keep-alive connections."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, cast

DELTA = b'"response.output_text.delta"'


def prepare(stream: bool, **fields: Any) -> bytes:
    """Write the request that is sent again and again; `fields` are added to its body."""
    question = [{"role": "user", "content": "Say some words."}]
    body = json.dumps({"input": question, "stream": stream, **fields}).encode()
    head = f"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


@dataclass
class Load:
    """What a number of connections measured together."""

    seconds: float = 0.0
    requests: int = 0
    deltas: int = 0
    first_event: list[float] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """Sends the request anew whenever its answer is complete, until the time is over."""

    def __init__(self, request: bytes, until: float, load: Load) -> None:
        self.request, self.until, self.load = request, until, load
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        self.received, self.expected, self.event_seen = b"", 0, False
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.event_seen and DELTA in self.received:
            self.event_seen = True
            self.load.first_event.append(time.perf_counter() - self.sent)
        if not self.received.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self.received[:500].decode(errors="replace")))
            self.transport.abort()
        elif self._is_complete():
            self.load.requests += 1
            self.load.deltas += self.received.count(DELTA)
            if time.perf_counter() < self.until:
                self._send()
            else:
                self.transport.close()

    def _is_complete(self) -> bool:
        if not self.expected:
            head, separator, _ = self.received.partition(b"\r\n\r\n")
            if not separator:
                return False
            _, named, rest = head.lower().partition(b"content-length:")
            length = int(rest.partition(b"\r\n")[0]) if named else 0
            self.expected = len(head) + 4 + length if named else -1
        if self.expected > 0:
            return len(self.received) >= self.expected
        return self.received.endswith(b"0\r\n\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            early = exc or (None if time.perf_counter() >= self.until else EOFError("hung up"))
            self.done.set_exception(early) if early else self.done.set_result(None)


async def generate(
    port: int, stream: bool, connections: int, seconds: float, **fields: Any
) -> Load:
    """Load a server on this machine for `seconds` and count what it answers."""
    load, request = Load(), prepare(stream, **fields)
    begin = time.perf_counter()
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(
            lambda: Connection(request, begin + seconds, load), "127.0.0.1", port
        )
        for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in opened))
    load.seconds = time.perf_counter() - begin
    return load
