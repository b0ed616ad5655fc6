"""Helpers of the tests of the page: a scripted agent, and the actions of a user."""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Locator, Page, expect

from agent_kit.server import AgentServer, create_server
from agent_kit.settings import load_settings

UNTRACED = {"AGENT_KIT_MLFLOW_TRACING": "false"}


@dataclass
class Stage:
    """An agent that follows the script of a test.

    Attributes:
        steps: Texts, events, an event of `threading` to wait for, or an exception to raise.
        requests: The received requests.
        closed: An event that is set when the generator of the agent is closed.
        url: The URL of its server.
    """

    steps: list[Any] = field(default_factory=lambda: ["Hello"])
    requests: list[Any] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    async def answer(self, request: Any):
        self.requests.append(request)
        try:
            for step in list(self.steps):
                if isinstance(step, threading.Event):
                    await wait_for(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.closed.set()

    def texts(self) -> list[str]:
        """Return the text of each message in the last request."""
        return [text_of(item) for item in self.requests[-1].input if "content" in item]


async def wait_for(event: threading.Event) -> None:
    while not event.is_set():  # noqa: ASYNC110 (it is set by another thread)
        await asyncio.sleep(0.01)


def text_of(item: dict[str, Any]) -> str:
    content = item["content"]
    return content if isinstance(content, str) else content[-1].get("text", "")


def untraced_server(task: str = "agent/v1/responses", **environ: str) -> AgentServer:
    given = {f"AGENT_KIT_{name}": value for name, value in environ.items()}
    return create_server(task, settings=load_settings(environ=UNTRACED | given))


# Actions of a user ----------------------------------------------------------------------------


def visit(page: Page, url: str) -> None:
    page.goto(url if url.endswith("/") else f"{url}/")
    expect(page.locator("html.ready")).to_be_attached()


def ask(page: Page, question: str) -> None:
    page.get_by_role("textbox", name="Message").fill(question)
    page.keyboard.press("Enter")


def answer(page: Page) -> Locator:
    return page.locator(".answer").last


def expect_end(page: Page) -> None:
    """Wait until the last answer is complete: the button sends again."""
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_attached()
    expect(answer(page).locator(".bar")).to_be_attached()


def call_item(name: str, arguments: str, call_id: str = "call_1") -> dict[str, Any]:
    item = {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
    return {"type": "response.output_item.done", "item": item}


def result_item(output: Any, call_id: str = "call_1") -> dict[str, Any]:
    item = {"type": "function_call_output", "call_id": call_id, "output": output}
    return {"type": "response.output_item.done", "item": item}
