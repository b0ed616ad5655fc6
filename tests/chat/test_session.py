"""Sessions with agents in this process and elsewhere."""

import asyncio

import pytest

from agent_kit.chat import Chat
from agent_kit.chat.session import RemoteAgent


def test_databricks_apps_are_called_below_api() -> None:
    async def bases() -> list[str]:
        found = []
        for url in ("https://my-agent-1.databricksapps.com/", "http://localhost:8000/v1"):
            agent = RemoteAgent(url, "token")
            found.append(str((await agent.client()).base_url))
            await agent.close()
        return found

    assert asyncio.run(bases()) == [
        "https://my-agent-1.databricksapps.com/api/v1/",
        "http://localhost:8000/v1/",
    ]


def test_the_token_of_a_server_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def key(**options: str) -> str:
        agent = RemoteAgent("http://localhost:8000", **options)
        try:
            return (await agent.client()).api_key
        finally:
            await agent.close()

    assert asyncio.run(key()) == "none"
    monkeypatch.setenv("AGENT_KIT_SERVER_TOKEN", "a secret")
    assert asyncio.run(key()) == "a secret"
    assert asyncio.run(key(token="mine")) == "mine"
    with Chat(url="http://localhost:8000") as chat:
        assert "a secret" not in repr(vars(chat.session))
