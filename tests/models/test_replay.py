"""Record and replay of model calls: recorded from a service, replayed without one."""

import asyncio

import pytest
from support.model_stand_in import ModelStandIn, Refusal, Turn
from support.python_agent import python_agent

from agent_kit.models import ModelError, ModelRequest, ScriptedModel, create_model, use_recording
from agent_kit.models.replay import RecordableModel, Recording, request_key
from agent_kit.settings import load_settings

KEY = "sk-test-0123456789abcdef0123456789"


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return tmp_path / "recordings" / "answers.jsonl"


def question(text="What is 17*23?", **parameters):
    return ModelRequest([{"role": "user", "content": text}], parameters=parameters)


def ask(*requests, url="http://127.0.0.1:9/v1"):
    """Ask the configured model, one request after the other; return the events of each."""
    overrides = {"agent.model": "openai:some-model", "agent.base_url": url}

    async def collect():
        model = create_model(load_settings(overrides=overrides))
        return [[event async for event in model.stream(request)] for request in requests]

    return asyncio.run(collect())


def record(path, turns, *requests, mode="new"):
    with ModelStandIn(turns) as service, use_recording(path, mode=mode):
        return ask(*requests, url=service.url)


def replay(path, *requests):
    with use_recording(path):
        return ask(*requests)


def test_events_replay_exactly_without_the_service(path):
    turn = Turn("Let me see.", reasoning="A product.", calls=[("add", {"a": 1})])
    recorded = record(path, [turn, "It is 391."], question(), question("And 18*23?"))
    assert replay(path, question(), question("And 18*23?")) == recorded


def test_errors_replay_too(path):
    refusal = Refusal(429, "quota", headers={"x-should-retry": "false"})
    with pytest.raises(ModelError) as recorded:
        record(path, [refusal], question())
    with pytest.raises(ModelError) as replayed:
        replay(path, question())
    assert vars(replayed.value) == vars(recorded.value)
    assert replayed.value.status == 429


def test_an_error_after_the_first_words_replays_with_them(path):
    model = ScriptedModel([["Some words ", ModelError("Broken.", 502)]])

    async def collect(recorded):
        received = []
        try:
            async for event in recorded.stream(question()):
                received.append(event["delta"])
        except ModelError as error:
            received.append(str(error))
        return received

    for mode in ("new", "replay"):
        with use_recording(path, mode=mode):
            events = asyncio.run(collect(RecordableModel(model)))
        assert events == ["Some ", "words ", "Broken."]
    assert len(model.requests) == 1


def test_an_unrecorded_request_is_refused_with_instructions(path):
    with pytest.raises(ModelError, match="AGENT_KIT_RECORD=1") as caught, use_recording(path):
        ask(question(f"My key is {KEY}, what is 17*23?"))
    assert caught.value.code == "not_recorded"
    assert str(path) in caught.value.message
    assert KEY not in caught.value.message
    assert not path.exists()


def test_secrets_stay_out_of_the_file(path):
    request = question(f"My key is {KEY}.")
    record(path, [f"Your key is {KEY}!"], request)
    assert KEY not in path.read_text()
    assert replay(path, request)


def test_stale_responses_are_reported_and_removed(path):
    record(path, ["391", "414"], question(), question("And 18*23?"))
    with pytest.warns(UserWarning, match="AGENT_KIT_RECORD=all"):
        replay(path, question())
    record(path, ["391"], question(), mode="all")
    assert len(path.read_text().splitlines()) == 1
    replay(path, question())


def test_only_what_is_missing_is_recorded(path, monkeypatch):
    record(path, ["391"], question())
    monkeypatch.setenv("AGENT_KIT_RECORD", "1")
    with ModelStandIn(["414"]) as service, use_recording(path):
        first, second = ask(question(), question("And 18*23?"), url=service.url)
    assert len(service.requests) == 1
    assert first[0]["delta"] == "391"
    assert second[0]["delta"] == "414"
    assert len(path.read_text().splitlines()) == 2


def test_a_repeated_request_gets_its_responses_in_order(path):
    record(path, ["one", "two"], question(), question(), mode="all")
    replayed = replay(path, question(), question(), question())
    assert [events[0]["delta"] for events in replayed] == ["one", "two", "two"]


def test_a_response_that_was_not_consumed_is_not_recorded(path):
    async def leave(model):
        events = model.stream(question())
        await anext(events)
        await events.aclose()

    with use_recording(path, mode="new"):
        asyncio.run(leave(RecordableModel(ScriptedModel(["one two"]))))
    assert not path.exists()


def test_ids_and_labels_do_not_change_the_key_of_a_request():
    def turn(call_id, **more):
        call = {"type": "function_call", "call_id": call_id, "name": "now", "arguments": "{}"}
        output = {"type": "function_call_output", "call_id": call_id, "output": "noon"}
        return [{"role": "user", "content": "When?"}, call | more, output]

    first = ModelRequest(turn("call_1", id="fc_1", status="completed"), parameters={"user": "ada"})
    second = ModelRequest(turn("call_2"), parameters={"metadata": {"trace_id": "tr-1"}})
    assert request_key(first) == request_key(second)
    others = [
        ModelRequest(turn("call_1"), "Be brief."),
        ModelRequest(turn("call_1"), parameters={"temperature": 0.0}),
        ModelRequest(turn("call_1"), tool_choice="none"),
        ModelRequest(turn("call_1"), tools=[{"type": "function", "name": "now"}]),
        ModelRequest(turn("call_1")[:1]),
    ]
    assert len({request_key(each) for each in [first, *others]}) == 6


@pytest.mark.parametrize("line", ["{not JSON", "[]", '{"key": "k"}', '"text"'])
def test_a_broken_file_names_its_line(path, line):
    record(path, ["391"], question())
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ModelError, match="line 2"):
        replay(path, question())


def test_a_wrong_value_of_the_variable_is_refused(path, monkeypatch):
    monkeypatch.setenv("AGENT_KIT_RECORD", "yes")
    with pytest.raises(ModelError, match="set it to 1"):
        Recording(path)
    load_settings()  # the variable is no mistyped setting


def test_a_model_created_before_is_replayed_within_the_block_only(path):
    record(path, ["391"], question())
    model = create_model(spec="offline")

    def response():
        async def collect():
            return [event.get("delta", "") async for event in model.stream(question())]

        return "".join(asyncio.run(collect()))

    assert "offered" in response()
    with use_recording(path):
        assert response() == "391"
    assert "offered" in response()


def test_an_agent_replays_its_tool_calls(path, monkeypatch):
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")

    async def answer(server):
        async with server.client() as client:
            return (await client.responses.create(input="What is 17*23?")).output_text

    server = python_agent()
    with use_recording(path, mode="new"):
        recorded = asyncio.run(answer(server))
    assert len(path.read_text().splitlines()) == 2
    path.write_text(path.read_text().replace('"delta":"391"', '"delta":"391, on record"'))
    with use_recording(path):
        replayed = asyncio.run(answer(server))
    assert replayed == f"{recorded}, on record"
