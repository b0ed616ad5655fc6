"""An HTTP stand-in for a model service: chat completions and Responses, plain and streamed.

    with ModelStandIn([Turn(calls=[("add", {"a": 1, "b": 2})]), "It is 3."]) as service:
        client = OpenAI(base_url=service.url, api_key="any")

Each request consumes the next turn: a text, a `Turn`, a `Refusal` (an HTTP error), or a function of
the request's body that returns one of these. Without turns it behaves like a small model that
calls `python_exec` for arithmetic and reports the tool's output: `calculator`.
"""

import json
import re
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Turn:
    """The response of the service to one request.

    Attributes:
        text: The text of the response.
        reasoning: The reasoning of the response.
        refusal: The refusal of the model, instead of a text.
        calls: Names and arguments of function calls; string arguments are sent unchanged.
        finish: The finish reason of chat completions.
        usage: Whether the service counts tokens.
        pause: Seconds between two chunks of a stream.
        wait: An event to wait for after the first chunk, or before the end of `frames`.
        cut: Whether to break the connection instead of ending the stream.
        chunks: The exact chunks of a chat completion stream, instead of everything above.
        frames: The exact frames of the whole stream, valid or not, instead of all others.
        kind: The content type of a streamed response.
    """

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: Sequence[tuple[str, dict[str, Any] | str]] = ()
    finish: str = ""
    usage: bool = True
    pause: float = 0
    wait: threading.Event | None = None
    cut: bool = False
    chunks: Sequence[dict[str, Any]] = ()
    frames: Sequence[str] = ()
    kind: str = "text/event-stream"

    @property
    def finish_reason(self) -> str:
        return self.finish or ("tool_calls" if self.calls else "stop")

    def items(self) -> list[dict[str, Any]]:
        """Return the response as output items of the Responses API."""
        items: list[dict[str, Any]] = []
        if self.reasoning:
            content = [{"type": "reasoning_text", "text": self.reasoning}]
            items.append({"id": "rs_1", "type": "reasoning", "summary": [], "content": content})
        if self.text or self.refusal:
            part = (
                {"type": "refusal", "refusal": self.refusal}
                if self.refusal
                else {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}
            )
            message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [part]}
            items.append(message | {"status": "completed"})
        for number, (name, arguments) in enumerate(self.calls):
            call = {"id": f"fc_{number}", "type": "function_call", "call_id": f"call_{number}"}
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            items.append(call | {"name": name, "arguments": text, "status": "completed"})
        return items


@dataclass
class Refusal:
    """An HTTP error instead of a response; `body` is the exact body, a text or a JSON value."""

    status: int
    message: str = "refused"
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None


Answer = str | Turn | Refusal | Callable[[dict[str, Any]], "str | Turn | Refusal"]


@dataclass
class Received:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def calculator(body: dict[str, Any]) -> Turn:
    """Behave like a model with the tool `python_exec`: call it, then report its output."""
    items = body.get("messages") or body.get("input")
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    last = items[-1]
    if last.get("role") == "tool" or last.get("type") == "function_call_output":
        return Turn(f"The result is {(last.get('content') or last.get('output')).strip()}.")
    found = re.search(r"[\d.]+(?: *[-+*/] *[\d.]+)+", json.dumps(last["content"]))
    names = [tool.get("function", tool).get("name") for tool in body.get("tools", ())]
    if found and "python_exec" in names:
        return Turn(calls=[("python_exec", {"code": f"print({found[0]})"})])
    return Turn("Hello from the stand-in.")


class ModelStandIn:
    """The service on a port of its own, in a thread, for the duration of a `with` block.

    Attributes:
        answers: The responses, in order.
        key: The required API key; None accepts any key.
        requests: The received requests.
        connections: The number of connections that delivered them.
        gone: An event that is set when a client disconnects before its response is complete.
    """

    def __init__(self, answers: Sequence[Answer] | None = None, *, key: str | None = None) -> None:
        self.answers = None if answers is None else list(answers)
        self.key = key
        self.requests: list[Received] = []
        self.connections = 0
        self.gone = threading.Event()
        self.closing = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "ModelStandIn":
        handler = type("Handler", (_Handler,), {"service": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False
        self.host = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.host}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, body: dict[str, Any]) -> Turn | Refusal:
        """Return the response to the next request."""
        if self.answers is None:
            return calculator(body)
        with self._lock:
            answer = self.answers.pop(0) if self.answers else Refusal(500, "no turn is left")
        answer = answer(body) if callable(answer) else answer
        return Turn(answer) if isinstance(answer, str) else answer


class _Handler(BaseHTTPRequestHandler):
    service: ModelStandIn
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.service.connections += 1

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        """Serve requests until the client or the service closes the connection."""
        while not self.service.closing.is_set():
            if not select.select([self.connection], [], [], 0.1)[0]:
                continue
            self.handle_one_request()
            if self.close_connection:
                return

    def do_GET(self) -> None:
        self._send_json(200, {"object": "list", "data": [{"id": "stand-in", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.service.requests.append(Received(self.path, headers, body))
        key = self.service.key
        if key is not None and headers.get("authorization") != f"Bearer {key}":
            received = headers.get("authorization", "")
            refusal = Refusal(401, f"Incorrect API key provided: {received}", "invalid_api_key")
            return self._refuse(refusal)
        answer = self.service.answer(body)
        if isinstance(answer, Refusal):
            return self._refuse(answer)
        model = body.get("model", "stand-in")
        chat = self.path.endswith("/chat/completions")
        if not body.get("stream"):
            return self._send_json(200, (_completion if chat else _response)(answer, model))
        with_usage = (body.get("stream_options") or {}).get("include_usage", False)
        chunks = (
            _chat_chunks(answer, model, with_usage) if chat else _response_events(answer, model)
        )
        return self._stream(answer, chunks)

    def _refuse(self, refusal: Refusal) -> None:
        error = {"message": refusal.message, "type": "error", "code": refusal.code}
        body = refusal.body or {"error": error | {"param": refusal.param}}
        self._send_json(refusal.status, body, refusal.headers)

    def _send_json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        head = {"Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}
        for name, value in head.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, turn: Turn, chunks: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", turn.kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for frame in turn.frames:
                self._write(frame)
            if turn.frames:
                if turn.wait:
                    turn.wait.wait(60)
                self.close_connection = turn.cut
                self.wfile.write(b"" if turn.cut else b"0\r\n\r\n")
                return
            for number, chunk in enumerate(chunks):
                if turn.cut and number == 2:
                    self.close_connection = True
                    return
                name = f"event: {chunk['type']}\n" if "type" in chunk else ""
                self._write(f"{name}data: {json.dumps(chunk)}\n\n")
                self._rest(turn, number)
            # In one write: clients stop reading at [DONE] and reuse a connection that is complete.
            self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        except ConnectionError:
            self.close_connection = True
            self.service.gone.set()

    def _write(self, frame: str) -> None:
        data = frame.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _rest(self, turn: Turn, number: int) -> None:
        time.sleep(turn.pause)
        while number == 1 and turn.wait and not turn.wait.wait(0.02):
            if self.service.closing.is_set():
                raise ConnectionAbortedError
            self._write(": waiting\n\n")


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*|\s+", text)


def _usage(turn: Turn) -> dict[str, int]:
    return {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def _completion(turn: Turn, model: str) -> dict[str, Any]:
    calls = [_chat_call(number, *call) for number, call in enumerate(turn.calls)]
    message = {"role": "assistant", "content": turn.text or None, "refusal": turn.refusal or None}
    message |= {"tool_calls": calls} if calls else {}
    message |= {"reasoning_content": turn.reasoning} if turn.reasoning else {}
    choice = {"index": 0, "message": message, "finish_reason": turn.finish_reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model}
    return head | {"choices": [choice]} | ({"usage": _usage(turn)} if turn.usage else {})


def _chat_call(number: int, name: str, arguments: dict[str, Any] | str) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": text}
    return {"id": f"call_{number}", "type": "function", "function": function}


def _chat_chunks(turn: Turn, model: str, usage: bool) -> Iterator[dict[str, Any]]:
    if turn.chunks:
        yield from turn.chunks
        return
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    for delta in _chat_deltas(turn):
        yield head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield head | {"choices": [{"index": 0, "delta": {}, "finish_reason": turn.finish_reason}]}
    if turn.usage and usage:
        yield head | {"choices": [], "usage": _usage(turn)}


def _chat_deltas(turn: Turn) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for kind, text in (
        ("reasoning_content", turn.reasoning),
        ("refusal", turn.refusal),
        ("content", turn.text),
    ):
        for chunk in _words(text):
            yield {kind: chunk}
    for number, call in enumerate(turn.calls):
        whole = _chat_call(number, *call)
        text = whole["function"]["arguments"]
        opening = whole | {"index": number, "function": whole["function"] | {"arguments": ""}}
        yield {"tool_calls": [opening]}
        for start in range(0, len(text), 8):
            chunk = {"index": number, "function": {"arguments": text[start : start + 8]}}
            yield {"tool_calls": [chunk]}


def _response(turn: Turn, model: str) -> dict[str, Any]:
    incomplete = {"length": "max_output_tokens", "content_filter": "content_filter"}
    reason = incomplete.get(turn.finish_reason)
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 15,
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": model,
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "error": None,
        "output": turn.items(),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage if turn.usage else None,
    }


def _response_events(turn: Turn, model: str) -> Iterator[dict[str, Any]]:
    whole = _response(turn, model)
    started = whole | {"output": [], "usage": None, "status": "in_progress"}
    events = [
        {"type": "response.created", "response": started},
        {"type": "response.in_progress", "response": started},
        *(event for index, item in enumerate(turn.items()) for event in _item_events(item, index)),
        {"type": f"response.{whole['status']}", "response": whole},
    ]
    for number, event in enumerate(events):
        yield event | {"sequence_number": number}


def _item_events(item: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
    at_item = {"output_index": index}
    at_part = at_item | {"item_id": item["id"], "content_index": 0}
    if item["type"] == "function_call":
        empty = item | {"arguments": "", "status": "in_progress"}
        yield {"type": "response.output_item.added", "item": empty} | at_item
        place = at_item | {"item_id": item["id"]}
        kind = "response.function_call_arguments"
        for start in range(0, len(item["arguments"]), 8):
            yield {"type": f"{kind}.delta", "delta": item["arguments"][start : start + 8]} | place
        done = {"arguments": item["arguments"], "name": item["name"]}
        yield {"type": f"{kind}.done"} | done | place
    else:
        part = item["content"][0]
        field_name = "refusal" if part["type"] == "refusal" else "text"
        text, kind = part[field_name], f"response.{part['type']}"
        extra = {"logprobs": []} if part["type"] == "output_text" else {}
        yield {"type": "response.output_item.added", "item": item | {"content": []}} | at_item
        added = part | {field_name: ""}
        yield {"type": "response.content_part.added", "part": added} | at_part
        for chunk in _words(text):
            yield {"type": f"{kind}.delta", "delta": chunk} | extra | at_part
        yield {"type": f"{kind}.done", field_name: text} | extra | at_part
        yield {"type": "response.content_part.done", "part": part} | at_part
    yield {"type": "response.output_item.done", "item": item} | at_item
