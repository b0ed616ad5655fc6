"""Agents and logged models of MLflow behind `server.use`."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_kit.server import create_server
from agent_kit.settings import Settings

CODE = """
from mlflow.models import set_model
from mlflow.pyfunc.model import ResponsesAgent
from mlflow.types.responses import ResponsesAgentResponse


class Logged(ResponsesAgent):
    def predict(self, request):
        text = f"{len(request.input)} items so far."
        return ResponsesAgentResponse(output=[self.create_text_output_item(text, "msg_1")])


set_model(Logged())
"""


@pytest.fixture(autouse=True)
def untraced() -> Iterator[None]:
    """Keep MLflow from tracing `predict`, which starts threads that last as long as the process."""
    import mlflow

    mlflow.tracing.disable()
    yield
    mlflow.tracing.enable()


def two_turns(agent: Any) -> list[str]:
    """Return the texts of two turns of a conversation with an agent, the first one streamed."""
    server = create_server(settings=Settings.model_validate({"mlflow": {"tracing": False}}))
    server.use(agent)

    async def talk() -> list[str]:
        async with server.client() as client:
            async with await client.responses.create(input="Hello", stream=True) as events:
                last = [event async for event in events][-1]
            assert last.type == "response.completed", last
            again = {"previous_response_id": last.response.id}
            second = await client.responses.create(input="Again", **again)
            return [last.response.output_text, second.output_text]

    return asyncio.run(talk())


def agents() -> Iterator[Any]:
    from mlflow.pyfunc.model import ChatAgent, ResponsesAgent
    from mlflow.types.agent import ChatAgentChunk, ChatAgentMessage, ChatAgentResponse
    from mlflow.types.responses import ResponsesAgentResponse, ResponsesAgentStreamEvent

    class Answers(ResponsesAgent):
        def predict(self, request: Any) -> ResponsesAgentResponse:
            text = f"{len(request.input)} items so far."
            return ResponsesAgentResponse(output=[self.create_text_output_item(text, "msg_1")])

    class Streams(Answers):
        def predict_stream(self, request: Any) -> Iterator[ResponsesAgentStreamEvent]:
            count = str(len(request.input))
            for piece in (count, " items so far."):
                yield ResponsesAgentStreamEvent(**self.create_text_delta(piece, "msg_1"))
            item = self.create_text_output_item(f"{count} items so far.", "msg_1")
            yield ResponsesAgentStreamEvent(type="response.output_item.done", item=item)

    class Chats(ChatAgent):
        def predict(self, messages: Any, context: Any = None, custom_inputs: Any = None) -> Any:
            text = f"{len(messages)} items so far."
            message = ChatAgentMessage(role="assistant", content=text, id="1")
            return ChatAgentResponse(messages=[message])

    class ChatStreams(Chats):
        def predict_stream(
            self, messages: Any, context: Any = None, custom_inputs: Any = None
        ) -> Iterator[ChatAgentChunk]:
            for piece in (str(len(messages)), " items so far."):
                delta = ChatAgentMessage(role="assistant", content=piece, id="1")
                yield ChatAgentChunk(delta=delta)

    yield from (Answers(), Streams(), Chats(), ChatStreams())


def test_agents_of_mlflow_answer_with_the_whole_conversation() -> None:
    for agent in agents():
        assert two_turns(agent) == ["1 items so far.", "3 items so far."], type(agent).__name__


def test_a_logged_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "logged.py").write_text(CODE)
    mlflow.pyfunc.save_model(
        tmp_path / "model", python_model=str(tmp_path / "logged.py"), pip_requirements=["mlflow"]
    )
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert two_turns(model) == ["1 items so far.", "3 items so far."]
