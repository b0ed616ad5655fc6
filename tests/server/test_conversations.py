"""Conversations: stored items, and the responses that append to them."""

import asyncio
from collections.abc import Iterator

import httpx2
import pytest
from openai import BadRequestError, NotFoundError, OpenAI, omit

from agent_kit.server import create_server
from agent_kit.settings import load_settings

UNTRACED = {"AGENT_KIT_MLFLOW_TRACING": "false", "AGENT_KIT_SERVER_TRUST_FORWARDED": "always"}


@pytest.fixture
def url() -> Iterator[str]:
    server = create_server(settings=load_settings(environ=UNTRACED))

    @server.stream()
    async def answer(request):
        if request.input[-1]["content"] == "fail":
            raise RuntimeError("on purpose")
        if request.input[-1]["content"] == "wait":
            await asyncio.Event().wait()
        yield f"{len(request.input)} items"

    with server.serve() as url:
        yield url


@pytest.fixture
def client(url) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as made:
        yield made


def ask(client: OpenAI, text="Hello", **fields):
    return client.responses.create(model="any", input=text, **fields)


def texts(client: OpenAI, conversation_id: str) -> list[str]:
    items = client.conversations.items.list(conversation_id, order="asc")
    return [item.content[0].text for item in items]


def test_a_conversation_is_created_changed_and_deleted(client):
    created = client.conversations.create(metadata={"topic": "numbers"})
    assert created.object == "conversation"
    assert client.conversations.retrieve(created.id).to_dict() == created.to_dict()
    changed = client.conversations.update(created.id, metadata={"topic": "words"})
    assert client.conversations.retrieve(created.id).metadata == {"topic": "words"}
    assert changed.metadata == {"topic": "words"}
    with pytest.raises(BadRequestError, match="metadata"):
        client.conversations.update(created.id, metadata=omit)
    assert client.conversations.retrieve(created.id).metadata == {"topic": "words"}
    assert client.conversations.delete(created.id).object == "conversation.deleted"
    with pytest.raises(NotFoundError):
        client.conversations.retrieve(created.id)
    with pytest.raises(NotFoundError) as caught:
        ask(client, conversation=created.id)
    assert caught.value.param == "conversation"


def test_responses_append_their_input_and_output(client):
    initial = [{"role": "user", "content": "Before"}]
    conversation = client.conversations.create(items=initial)
    first = ask(client, "one", conversation=conversation.id)
    assert first.output_text == "2 items"
    assert first.conversation.id == conversation.id
    with client.responses.stream(
        model="any", input="two", conversation={"id": conversation.id}
    ) as stream:
        assert stream.get_final_response().output_text == "4 items"
    background = ask(client, "three", conversation=conversation.id, background=True)
    list(client.responses.retrieve(background.id, stream=True))
    unstored = ask(client, "four", conversation=conversation.id, store=False)
    assert unstored.output_text == "8 items"
    assert texts(client, conversation.id) == [
        *("Before", "one", "2 items", "two", "4 items"),
        *("three", "6 items", "four", "8 items"),
    ]


def test_a_failed_response_adds_nothing(client, caplog):
    conversation = client.conversations.create()
    with pytest.raises(Exception, match="failed"):
        ask(client, "fail", conversation=conversation.id)
    assert texts(client, conversation.id) == []


def test_items_are_added_read_and_deleted(client):
    conversation = client.conversations.create()
    words = [{"role": "user", "content": str(number)} for number in range(5)]
    added = client.conversations.items.create(conversation.id, items=words)
    assert [item.content[0].text for item in added.data] == ["0", "1", "2", "3", "4"]
    one = client.conversations.items.retrieve(added.data[1].id, conversation_id=conversation.id)
    assert one.to_dict() == added.data[1].to_dict()
    client.conversations.items.delete(one.id, conversation_id=conversation.id)
    assert texts(client, conversation.id) == ["0", "2", "3", "4"]
    page = client.conversations.items.list(conversation.id, limit=2)
    assert [item.content[0].text for item in page.data] == ["4", "3"]
    assert page.has_more
    assert [item.content[0].text for item in page] == ["4", "3", "2", "0"]
    for attempt in ("retrieve", "delete"):
        with pytest.raises(NotFoundError):
            getattr(client.conversations.items, attempt)(one.id, conversation_id=conversation.id)
    with pytest.raises(BadRequestError, match="after"):
        client.conversations.items.list(conversation.id, after=one.id)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metadata": {"key": 7}}, "metadata.key"),
        ({"metadata": 7}, "metadata"),
        ({"metadata": False}, "metadata"),
        ({"metadata": {"k" * 65: "long"}}, f"metadata.{'k' * 65}"),
        ({"items": "text"}, "items"),
        ({"items": [{"role": "king", "content": "x"}]}, "items[0].role"),
        ({"items": [{"role": "user", "content": "x"}] * 21}, "items"),
    ],
)
def test_a_bad_conversation_is_refused_by_name(url, body, param):
    answer = httpx2.post(f"{url}/v1/conversations", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_conversation_and_previous_response_exclude_each_other(client):
    conversation = client.conversations.create()
    first = ask(client)
    with pytest.raises(BadRequestError, match="conversation"):
        ask(client, previous_response_id=first.id, conversation=conversation.id)


def test_the_callers_conversations_are_listed_the_last_used_first(url, client):
    ada = {"x-forwarded-email": "ada@example.com"}
    ids = [client.conversations.create().id for _ in range(3)]
    hers = httpx2.post(f"{url}/v1/conversations", json={}, headers=ada).json()["id"]
    ask(client, "What is  17*23?", conversation=ids[1])
    listed = httpx2.get(f"{url}/agent/conversations?limit=2").json()
    assert listed["data"][0]["id"] == ids[1]
    assert listed["data"][0]["title"] == "What is 17*23?"
    assert listed["has_more"]
    rest = httpx2.get(f"{url}/agent/conversations?after={listed['last_id']}").json()
    assert {entry["id"] for entry in [*listed["data"], *rest["data"]]} == set(ids)
    for unknown in ("conv_unknown", hers):
        refused = httpx2.get(f"{url}/agent/conversations?after={unknown}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (404, "after")
    own = httpx2.get(f"{url}/agent/conversations", headers=ada).json()
    assert [entry["id"] for entry in own["data"]] == [hers]
    assert httpx2.get(f"{url}/v1/conversations/{hers}").status_code == 404
    assert httpx2.get(f"{url}/agent/info").json()["features"]["conversations"]


def test_a_whole_conversation_states_which_response_created_an_item(url, client):
    conversation = client.conversations.create()
    whole = f"{url}/agent/conversations/{conversation.id}"
    ended = ask(client, "one", conversation=conversation.id)
    body = httpx2.get(whole).json()
    assert body["title"] == "one"
    assert [item.get("response_id") for item in body["items"]] == [None, ended.id]
    assert [response["id"] for response in body["responses"]] == [ended.id]
    assert body["responses"][0]["usage"] == ended.usage.to_dict()
    assert "output" not in body["responses"][0]

    running = ask(client, "wait", conversation=conversation.id, background=True)
    elsewhere = ask(client, "wait", background=True)
    body = httpx2.get(whole).json()
    assert len(body["items"]) == 2
    statuses = {response["id"]: response["status"] for response in body["responses"]}
    assert statuses.pop(running.id) in ("queued", "in_progress")
    assert statuses == {ended.id: "completed"}
    for response in (running, elsewhere):
        client.responses.cancel(response.id)
    assert [each["id"] for each in httpx2.get(whole).json()["responses"]] == [ended.id]
    client.responses.delete(ended.id)
    assert httpx2.get(whole).json()["responses"] == []


def test_items_of_another_user_do_not_reveal_their_response(url, client):
    ada, eve = ({"x-forwarded-email": f"{name}@example.com"} for name in ("ada", "eve"))
    secret = {"input": "one", "instructions": "The word is plugh."}
    hers = httpx2.post(f"{url}/v1/responses", json=secret, headers=ada).json()
    stolen = {"items": [{**hers["output"][0]}]}
    made = httpx2.post(f"{url}/v1/conversations", json=stolen, headers=eve).json()
    whole = f"{url}/agent/conversations/{made['id']}"
    body = httpx2.get(whole, headers=eve).json()
    assert [item["id"] for item in body["items"]] == [hers["output"][0]["id"]]
    assert body["responses"] == []
    assert "response_id" not in body["items"][0]
    assert httpx2.get(whole, headers=ada).status_code == 404
