"""The official client over a server in this process."""

import asyncio
import contextvars

import pytest
from openai import BadRequestError, InternalServerError

from agent_kit.server import create_server

WHO = contextvars.ContextVar("who", default="no one")


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    monkeypatch.setenv("AGENT_KIT_MLFLOW_TRACING", "false")


def test_the_first_delta_arrives_before_the_agent_has_finished():
    server = create_server()

    async def run_client():
        seen = asyncio.Event()

        @server.stream()
        async def answer(request):
            yield "first"
            await asyncio.wait_for(seen.wait(), 60)
            yield " second"

        async with (
            server.client() as client,
            client.responses.stream(input="Hi", model="any") as stream,
        ):
            async for event in stream:
                if event.type == "response.output_text.delta":
                    seen.set()
            return (await stream.get_final_response()).output_text

    assert asyncio.run(run_client()) == "first second"


def test_closing_a_stream_early_closes_the_agent():
    server = create_server()

    async def run_client():
        ended = asyncio.Event()

        @server.stream()
        async def answer(request):
            try:
                while True:
                    yield "again"
                    await asyncio.sleep(0)
            finally:
                ended.set()

        async with server.client() as client:
            async with await client.responses.create(input="Hi", stream=True) as stream:
                async for event in stream:
                    if event.type == "response.output_text.delta":
                        break
            await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(run_client())


def test_closing_the_client_closes_an_open_stream():
    server = create_server()
    ended = []

    @server.stream()
    async def answer(request):
        try:
            yield "started"
            await asyncio.sleep(60)
        finally:
            ended.append(asyncio.get_running_loop().time())

    async def run_client():
        async with server.client() as client:
            messages = [{"role": "user", "content": "Hi"}]
            stream = await client.chat.completions.create(
                model="any", messages=messages, stream=True
            )
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
            left = asyncio.get_running_loop().time()
        assert ended[0] - left < 5
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        await stream.close()

    asyncio.run(run_client())


def test_context_variables_of_the_caller_reach_the_agent():
    server = create_server()
    server.invoke()(lambda request: WHO.get())

    async def run_client():
        WHO.set("Ada")
        async with server.client() as client:
            return (await client.responses.create(input="Who?")).output_text

    assert asyncio.run(run_client()) == "Ada"


def test_errors_arrive_as_the_clients_own(caplog):
    server = create_server()

    @server.invoke()
    def answer(request):
        raise RuntimeError("secret")

    async def run_client():
        async with server.client() as client:
            with pytest.raises(BadRequestError, match="temperature"):
                await client.responses.create(input="Hi", temperature=99)
            with pytest.raises(InternalServerError) as caught:
                await client.responses.create(input="Hi")
            return str(caught.value)

    assert "secret" not in asyncio.run(run_client())


def test_chat_completions_stream():
    server = create_server()

    @server.stream()
    def answer(request):
        yield "one "
        yield "two"

    async def run_client():
        async with server.client() as client:
            messages = [{"role": "user", "content": "Hi"}]
            stream = await client.chat.completions.create(
                model="any", messages=messages, stream=True
            )
            chunks = [chunk async for chunk in stream]
            return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]

    assert "".join(filter(None, asyncio.run(run_client()))) == "one two"


def test_the_lifespan_starts_and_ends_with_the_client():
    server = create_server()

    @server.invoke()
    def answer(request):
        return "Hi"

    async def run_client():
        async with server.client() as client:
            await client.responses.create(input="Hi")
            return server._lives, client

    lives, _ = asyncio.run(run_client())
    assert lives == 1
    assert server._lives == 0
