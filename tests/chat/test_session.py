"""Sessions with agents in this process and elsewhere."""

import asyncio

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
