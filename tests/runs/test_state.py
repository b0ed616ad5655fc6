"""Stored responses: storing, continuing, following, cancelling and deleting them."""

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest
from openai import BadRequestError, InternalServerError, NotFoundError, OpenAI
from support.postgres_server import PostgresServer
from support.state_support import UNTRACED, make_server
from support.stream_checker import check_response, check_sse, check_stream

from agent_kit.context import current_context
from agent_kit.runs import event_log
from agent_kit.server import AgentServer, create_server
from agent_kit.settings import load_settings

PATIENCE = 60
CANCEL_SECONDS = 1


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def store(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of the store: an SQLite file, or on demand a PostgreSQL database."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return {}
    return {"AGENT_KIT_STORE_URL": request.getfixturevalue("postgres").new_database()}


on_both = pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def served(store) -> Iterator[tuple[AgentServer, str]]:
    server = make_server(**store)
    with server.serve() as url:
        yield server, url


@pytest.fixture
def url(served) -> str:
    return served[1]


@pytest.fixture
def client(url) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as made:
        yield made


def ask(client: OpenAI, text="Hello", **fields):
    return client.responses.create(model="any", input=text, **fields)


def wait_for_end(client: OpenAI, response_id: str):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = client.responses.retrieve(response_id)
        if found.status not in ("queued", "in_progress"):
            return found
        time.sleep(0.02)
    raise AssertionError("the response did not end")


def read_stream(url: str, response_id: str, after: int | None = None) -> list[dict]:
    query = {"stream": "true"} | ({} if after is None else {"starting_after": after})
    answer = httpx2.get(f"{url}/v1/responses/{response_id}", params=query, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line[6:]) for line in lines]


# Storing --------------------------------------------------------------------------------------


@on_both
def test_what_is_retrieved_is_what_was_returned(client):
    asked = {"metadata": {"topic": "numbers"}, "temperature": 0.5, "user": "ada"}
    created = ask(client, **asked)
    assert client.responses.retrieve(created.id).model_dump() == created.model_dump()
    assert created.metadata["topic"] == "numbers"


@on_both
def test_a_stream_is_stored_with_its_events(url, client):
    body = {"input": "slowly", "stream": True}
    answer = httpx2.post(f"{url}/v1/responses", json=body, timeout=PATIENCE)
    events = check_sse(answer.content)
    final = events[-1]["response"]
    assert client.responses.retrieve(final["id"]).to_dict() == final
    assert read_stream(url, final["id"]) == events
    for after in (0, 3, len(events) - 2, len(events) - 1):
        assert read_stream(url, final["id"], after) == events[after + 1 :]


def test_the_sdk_continues_a_stream(client):
    with client.responses.create(model="any", input="slowly", stream=True) as stream:
        seen = list(stream)
    last = seen[-1].response
    rest = list(client.responses.retrieve(last.id, stream=True, starting_after=5))
    assert [event.sequence_number for event in rest] == [e.sequence_number for e in seen[6:]]
    assert rest[-1].response.output_text == last.output_text


def test_a_non_streaming_response_has_no_events(url, client):
    answer = httpx2.get(f"{url}/v1/responses/{ask(client).id}?stream=true")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stream"


def test_whether_to_stream_is_true_or_false(url, client):
    answer = httpx2.get(f"{url}/v1/responses/{ask(client).id}?stream=yes")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


def test_what_only_a_stream_can_do_is_refused_without_one(url, client):
    path = f"{url}/v1/responses/{ask(client).id}"
    for query, param in (
        ("starting_after=3", "starting_after"),
        ("stream=false&starting_after=3", "starting_after"),
        ("include=everything", "include"),
        ("include[]=everything", "include"),
    ):
        refused = httpx2.get(f"{path}?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert httpx2.get(f"{path}?include[]=reasoning.encrypted_content").status_code == 200
    assert httpx2.get(f"{path}/input_items?include[]=everything").status_code == 400


def test_a_response_that_was_sent_retains_the_name_of_its_model(url, client):
    events = list(ask_stream(url, input="name the model", stream=True))
    shown = {event["response"]["model"] for event in events if "response" in event}
    assert len(shown) == 1
    chat = {"messages": [{"role": "user", "content": "name the model"}], "stream": True}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=chat).text
    chunks = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    assert len({chunk["model"] for chunk in chunks}) == 1
    started = httpx2.post(
        f"{url}/v1/responses", json={"input": "name the model", "background": True}
    )
    ended = wait_for_end(client, started.json()["id"])
    assert ended.model == started.json()["model"]
    plain = httpx2.post(f"{url}/v1/responses", json={"input": "name the model"})
    assert plain.json()["model"] == "real-model"


def ask_stream(url: str, **body) -> list[dict]:
    return check_sse(httpx2.post(f"{url}/v1/responses", json=body).content)


def test_store_false_writes_nothing(client, served):
    created = ask(client, store=False)
    assert created.output_text == "1 items"
    with client.responses.stream(model="any", input="slowly", store=False) as stream:
        streamed = stream.get_final_response()
    for response in (created, streamed):
        with pytest.raises(NotFoundError):
            client.responses.retrieve(response.id)
    with pytest.raises(BadRequestError, match="not found"):
        ask(client, previous_response_id=created.id)


@pytest.mark.usefixtures("streams_open_late")
def test_a_response_that_failed_at_once_is_not_stored(url, tmp_path, caplog):
    for body in ({"input": "fail"}, {"input": "fail", "stream": True}):
        assert httpx2.post(f"{url}/v1/responses", json=body).status_code == 500
    with sqlite3.connect(tmp_path / ".agent_kit/store.db") as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        if "responses" in tables:
            assert connection.execute("SELECT count(*) FROM responses").fetchone() == (0,)
    connection.close()


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize("turns", range(5))
def test_a_stream_that_fails_as_it_opens_has_one_error(turns, monkeypatch, caplog):
    monkeypatch.setattr("agent_kit.server.endpoint.OPEN_AFTER_SECONDS", 0.02)
    server = create_server(settings=load_settings(environ=UNTRACED))

    @server.stream()
    async def fail_late(request):
        if request.input[-1]["content"] == "Hello":
            yield "ready"
            return
        hold_the_loop(0.03)  # until the stream should have opened
        for _ in range(turns):
            await asyncio.sleep(0)
        raise RuntimeError("on purpose")

    async def ask_in_process() -> str:
        async with server.client() as client:
            ready = await client.responses.create(model="any", input="Hello", stream=True)
            assert [event.type async for event in ready][-1] == "response.completed"
            try:
                stream = await client.responses.create(model="any", input="Hi", stream=True)
                return [event.type async for event in stream][-1]
            except InternalServerError as error:
                return error.body["message"]

    assert asyncio.run(ask_in_process()).startswith(("response.failed", "The agent failed."))


def test_an_acknowledged_response_is_in_the_file(client, tmp_path):
    created = ask(client)
    connection = sqlite3.connect(tmp_path / ".agent_kit/store.db")
    found = connection.execute("SELECT id, status FROM responses").fetchall()
    connection.close()
    assert found == [(created.id, "completed")]


# Chains ---------------------------------------------------------------------------------------


@on_both
def test_a_chain_gives_the_agent_the_whole_context(client):
    first = ask(client)
    second = ask(client, previous_response_id=first.id)
    third = ask(client, previous_response_id=second.id)
    other = ask(client, previous_response_id=first.id)
    assert [r.output_text for r in (first, second, third, other)] == [
        *("1 items", "3 items", "5 items", "3 items")
    ]
    assert third.previous_response_id == second.id


def test_a_stream_continues_a_chain(client):
    first = ask(client)
    with client.responses.stream(model="any", input="Hi", previous_response_id=first.id) as stream:
        second = stream.get_final_response()
    assert second.output_text == "3 items"
    assert ask(client, previous_response_id=second.id).output_text == "5 items"


def test_the_agent_can_ask_for_the_raw_request(client):
    first = ask(client)
    request = json.loads(ask(client, "raw", previous_response_id=first.id).output_text)
    assert request == {"model": "any", "input": "raw", "previous_response_id": first.id}


def test_an_unknown_previous_response_is_a_400_with_its_parameter(url):
    body = {"input": "Hi", "previous_response_id": "resp_unknown"}
    answer = httpx2.post(f"{url}/v1/responses", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "previous_response_id"
    assert error["code"] == "previous_response_not_found"


@on_both
def test_a_tools_output_needs_its_call_in_the_chain(client):
    first = ask(client)
    output = [{"type": "function_call_output", "call_id": "call_1", "output": "42"}]
    with pytest.raises(BadRequestError) as caught:
        ask(client, output, previous_response_id=first.id)
    assert caught.value.param == "input"
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    called = ask(client, [{"role": "user", "content": "x"}, call, *output])
    assert ask(client, output, previous_response_id=called.id).output_text == "5 items"


@on_both
def test_any_text_can_be_stored_and_an_id_that_cannot_is_refused(url, client):
    conversation = client.conversations.create()
    assert ask(client, "nothing \0 to see", conversation=conversation.id).output_text == "1 items"
    listed = httpx2.get(f"{url}/agent/conversations").json()["data"]
    assert listed[0]["title"] == "nothing  to see"
    for wrong in ("m" * 500, "msg_\0", 7):
        item = {"role": "user", "content": "x", "id": wrong}
        answer = httpx2.post(f"{url}/v1/responses", json={"input": [item]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[0].id")
    assert httpx2.get(f"{url}/v1/responses/%00").status_code in (400, 404)


@on_both
def test_an_id_of_the_agents_that_cannot_be_stored_is_replaced(client):
    created = ask(client, "long id")
    assert created.output_text == "named"
    assert client.responses.retrieve(created.id).to_dict() == created.to_dict()


@on_both
def test_an_input_may_refer_to_a_stored_item(client):
    first = ask(client)
    reference = {"type": "item_reference", "id": first.output[0].id}
    assert ask(client, [reference, {"role": "user", "content": "Hi"}]).output_text == "2 items"
    missing = {"type": "item_reference", "id": "msg_unknown"}
    with pytest.raises(NotFoundError, match="msg_unknown"):
        ask(client, [missing, {"role": "user", "content": "Hi"}])


@on_both
def test_input_items_are_listed_page_by_page(client):
    words = [{"role": "user", "content": str(number)} for number in range(5)]
    created = ask(client, words)
    listed = client.responses.input_items.list(created.id, order="asc", limit=2)
    assert listed.has_more
    assert [item.content[0].text for item in listed] == ["0", "1", "2", "3", "4"]
    newest = client.responses.input_items.list(created.id, limit=1)
    assert newest.data[0].content[0].text == "4"
    assert newest.data[0].id
    with pytest.raises(BadRequestError, match="limit"):
        client.responses.input_items.list(created.id, limit=101)
    with pytest.raises(BadRequestError, match="after"):
        client.responses.input_items.list(created.id, after="msg_unknown")
    with pytest.raises(BadRequestError, match="order"):
        client.responses.input_items.list(created.id, order="up")


@on_both
def test_a_deleted_response_is_gone_and_what_continues_it_stays(client):
    first = ask(client)
    second = ask(client, previous_response_id=first.id)
    client.responses.delete(first.id)
    for attempt in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(NotFoundError):
            attempt(first.id)
    with pytest.raises(BadRequestError):
        ask(client, previous_response_id=first.id)
    assert ask(client, previous_response_id=second.id).output_text == "5 items"


# Background -----------------------------------------------------------------------------------


def test_a_background_response_is_polled_to_its_end(client):
    created = ask(client, "slowly", background=True)
    assert created.status in ("queued", "in_progress")
    assert created.background
    ended = wait_for_end(client, created.id)
    assert ended.output_text == "0 1 2 3 4 5 6 7 "
    check_response(ended.to_dict())


@on_both
def test_a_response_in_progress_shows_the_items_that_are_done(client):
    created = ask(client, "call and wait", background=True)
    deadline = time.monotonic() + PATIENCE
    while not (found := client.responses.retrieve(created.id)).output:
        assert time.monotonic() < deadline, "no item was shown"
        time.sleep(0.02)
    assert found.status == "in_progress"
    assert [item.type for item in found.output] == ["mcp_call"]
    cancelled = client.responses.cancel(created.id)
    assert cancelled.output[0] == found.output[0]
    assert [item.type for item in cancelled.output] == ["mcp_call", "message"]


@on_both
def test_a_reader_of_a_long_run_gets_what_is_no_longer_in_memory(url, client, monkeypatch):
    monkeypatch.setattr("agent_kit.runs.event_log._MAX_IN_MEMORY", 3)
    monkeypatch.setattr("agent_kit.store.runs._BATCHES_AT_ONCE", 2)
    created = ask(client, "count for ever", background=True)
    first, again = (read_events(url, created.id, 30) for _ in range(2))
    assert again == first
    client.responses.cancel(created.id)
    whole = read_stream(url, created.id)
    assert whole[:30] == first
    check_stream(whole)


def read_events(url: str, response_id: str, count: int) -> list[dict]:
    query = f"{url}/v1/responses/{response_id}?stream=true"
    seen = []
    with httpx2.stream("GET", query, timeout=PATIENCE) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                seen.append(json.loads(line[6:]))
            if len(seen) == count:
                return seen
    raise AssertionError("the stream ended early")


@on_both
def test_a_background_stream_can_be_closed_and_continued(url, client):
    body = {"input": "slowly", "stream": True, "background": True}
    seen = []
    with httpx2.stream("POST", f"{url}/v1/responses", json=body, timeout=PATIENCE) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                seen.append(json.loads(line[6:]))
            if len(seen) == 6:
                break
    response_id = seen[0]["response"]["id"]
    rest = read_stream(url, response_id, seen[-1]["sequence_number"])
    assert read_stream(url, response_id) == seen + rest
    assert rest[-1]["type"] == "response.completed"
    assert wait_for_end(client, response_id).output_text == "0 1 2 3 4 5 6 7 "


def test_a_failed_background_run_reports_its_failure(client, caplog):
    ended = wait_for_end(client, ask(client, "fail", background=True).id)
    assert ended.status == "failed"
    assert "on purpose" not in ended.error.message


@on_both
def test_a_stream_from_another_server_ends_after_a_deletion(store, client, monkeypatch):
    monkeypatch.setattr(event_log, "_POLL_SECONDS", 1)
    running = ask(client, "count for ever", background=True)
    with make_server(**store).serve() as elsewhere:
        path = f"{elsewhere}/v1/responses/{running.id}"
        query = {"stream": "true"}
        with httpx2.stream("GET", path, params=query, timeout=PATIENCE) as followed:
            lines = followed.iter_lines()
            assert next(lines) == "event: response.created"
            client.responses.delete(running.id)
            *_, last, _, done, _ = lines
    assert done == "data: [DONE]"
    assert json.loads(last[6:])["type"] in ("error", "response.incomplete")


def test_cancel_ends_a_background_run_at_once_and_again(url, client, served):
    created = ask(client, "count for ever", background=True)
    began = time.monotonic()
    cancelled = client.responses.cancel(created.id)
    assert cancelled.status == "cancelled"
    assert time.monotonic() - began < 10 * CANCEL_SECONDS
    assert served[0].closed.wait(PATIENCE)
    assert client.responses.cancel(created.id).to_dict() == cancelled.to_dict()
    assert client.responses.retrieve(created.id).to_dict() == cancelled.to_dict()
    events = read_stream(url, created.id)
    assert events[-1]["response"] == cancelled.to_dict()


def test_a_non_streaming_response_cannot_be_cancelled(client):
    with pytest.raises(BadRequestError, match="background"):
        client.responses.cancel(ask(client).id)
    with pytest.raises(NotFoundError):
        client.responses.cancel("resp_unknown")


@on_both
def test_a_running_response_is_deleted_after_it_is_stopped(client, served):
    created = ask(client, "count for ever", background=True)
    client.responses.delete(created.id)
    assert served[0].closed.wait(PATIENCE)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(created.id)


def test_a_running_response_cannot_be_continued(client):
    created = ask(client, "count for ever", background=True)
    with pytest.raises(BadRequestError, match="in progress"):
        ask(client, previous_response_id=created.id)
    client.responses.cancel(created.id)


def read_some(url: str, prompt: str) -> list[dict]:
    body = {"input": prompt, "stream": True}
    seen = []
    with httpx2.stream("POST", f"{url}/v1/responses", json=body, timeout=PATIENCE) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                seen.append(json.loads(line[6:]))
            if len(seen) == 8:
                return seen
    raise AssertionError("the stream ended early")


def test_a_stream_whose_client_disconnects_is_cancelled_and_remains_readable(url, client, served):
    seen = read_some(url, "count for ever")
    assert served[0].closed.wait(PATIENCE)
    response_id = seen[0]["response"]["id"]
    assert wait_for_end(client, response_id).status == "cancelled"
    assert read_stream(url, response_id)[:8] == seen


def test_a_stream_whose_client_disconnects_may_continue():
    server = make_server(AGENT_KIT_SERVER_ON_DISCONNECT="continue")
    with server.serve() as url, OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        seen = read_some(url, "slowly")
        rest = read_stream(url, seen[0]["response"]["id"], seen[-1]["sequence_number"])
        assert rest[-1]["type"] == "response.completed"
        endless = read_some(url, "count for ever")[0]["response"]["id"]
        assert client.responses.retrieve(endless).status == "in_progress"
        assert client.responses.cancel(endless).status == "cancelled"
        assert client.responses.cancel(endless).status == "cancelled"
        assert server.closed.wait(PATIENCE)


# Counting and compacting ----------------------------------------------------------------------


def test_tokens_are_counted_with_the_context(client):
    first = ask(client, "word " * 100)
    alone = client.responses.input_tokens.count(input="Hello").input_tokens
    both = client.responses.input_tokens.count(input="Hello", previous_response_id=first.id)
    assert 1 < alone < 20
    tool = {"type": "function", "name": "look", "description": "word " * 100, "parameters": {}}
    count = client.responses.input_tokens.count
    assert count(input="Hello", tools=[tool]).input_tokens > 100
    assert both.input_tokens > 100


def test_a_compacted_context_is_accepted_as_input(url, client):
    first = ask(client)
    assert client.responses.compact(model="any", previous_response_id=first.id).output
    refused = httpx2.post(f"{url}/v1/responses/compact", json={"previous_response_id": first.id})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    body = {"model": "any", "previous_response_id": first.id}
    compacted = httpx2.post(f"{url}/v1/responses/compact", json=body).json()
    assert compacted["object"] == "response.compaction"
    items = compacted["output"]
    assert [item["type"] for item in items] == ["message", "compaction"]
    assert ask(client, [*items, {"role": "user", "content": "Hi"}]).output_text == "3 items"
    items[-1]["encrypted_content"] = "ak1.broken"
    with pytest.raises(BadRequestError, match="compaction"):
        ask(client, items)


def test_what_is_compacted_twice_loses_nothing_more(client):
    context = [{"role": "assistant", "content": f"{number} " * 100} for number in range(20)]
    once = client.responses.compact(model="any", input=context)
    items = [item.to_dict() for item in once.output]
    twice = client.responses.compact(model="any", input=items)
    assert once.usage.output_tokens > 1000
    assert twice.usage.input_tokens == twice.usage.output_tokens == once.usage.output_tokens
    assert [item.encrypted_content for item in twice.output] == [
        item.encrypted_content for item in once.output
    ]


# Owners ------------------------------------------------------------------------------------


@on_both
def test_a_response_is_visible_to_its_user_alone(url):
    ada = {"x-forwarded-email": "ada@example.com", "x-forwarded-access-token": "secret-of-ada"}
    bob = {"x-forwarded-email": "bob@example.com"}
    created = httpx2.post(f"{url}/v1/responses", json={"input": "Hi"}, headers=ada).json()
    path = f"{url}/v1/responses/{created['id']}"
    assert httpx2.get(path, headers=ada).json() == created
    for headers in (bob, {}):
        assert httpx2.get(path, headers=headers).status_code == 404
        assert httpx2.get(f"{path}/input_items", headers=headers).status_code == 404
        assert httpx2.delete(path, headers=headers).status_code == 404
        assert httpx2.post(f"{path}/cancel", headers=headers).status_code == 404
        body = {"input": "Hi", "previous_response_id": created["id"]}
        assert httpx2.post(f"{url}/v1/responses", json=body, headers=headers).status_code == 400


def test_a_users_token_is_never_stored(url, tmp_path):
    token = {"x-forwarded-access-token": "secret-of-ada"}
    body = {"input": "slowly", "background": True}
    created = httpx2.post(f"{url}/v1/responses", json=body, headers=token).json()
    read = httpx2.get(f"{url}/v1/responses/{created['id']}?stream=true", headers=token)
    assert "response.completed" in read.text
    stored = b"".join(path.read_bytes() for path in (tmp_path / ".agent_kit").glob("store.db*"))
    assert created["id"].encode() in stored
    assert b"secret-of-ada" not in stored


def test_a_background_run_retains_its_users_identity():
    server = create_server(settings=load_settings(environ=UNTRACED))

    @server.stream()
    async def answer(request):
        await asyncio.sleep(0.05)
        yield current_context().access_token()

    token = {"x-forwarded-access-token": "secret-of-ada"}
    body = {"input": "Hi", "background": True}
    with server.serve() as url:
        created = httpx2.post(f"{url}/v1/responses", json=body, headers=token).json()
        path = f"{url}/v1/responses/{created['id']}"
        read = httpx2.get(f"{path}?stream=true", headers=token, timeout=PATIENCE)
    assert "secret-of-ada" in read.text


# Without a store ------------------------------------------------------------------------------


def test_without_a_store_state_is_refused_with_its_parameter():
    server = make_server(AGENT_KIT_STORE_URL="none")
    with server.serve() as url:
        assert httpx2.post(f"{url}/v1/responses", json={"input": "Hi"}).status_code == 200
        refused = httpx2.post(f"{url}/v1/responses", json={"input": "Hi", "background": True})
        features = httpx2.get(f"{url}/agent/info").json()["features"]
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "background"
    assert not features["store"]


@on_both
def test_the_threads_of_the_store_end_with_the_server(served, client):
    ask(client, "slowly", background=True)
    assert any(thread.name.startswith("store-") for thread in threading.enumerate())
