"""Agents of other frameworks, each with one tool, on a model that answers from a script."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# DSPy and MLflow import LiteLLM, which else downloads a list of prices while it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from openai import AsyncOpenAI
from support.model_stand_in import ModelStandIn, Turn

LOOK = Turn(text="I look. ", calls=[("weather", {"city": "Rome"})])


@contextmanager
def model(answers: Iterable[Any] = (LOOK, "It is sunny.", "Still sunny.")) -> Iterator[Any]:
    """Serve a model that gives these answers, one after the other."""
    with ModelStandIn(list(answers)) as service:
        yield service


def weather(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: The name of the city.
    """
    return f"Sun in {city}"


_clients: list[AsyncOpenAI] = []


def client_of(service: ModelStandIn) -> AsyncOpenAI:
    """Return a client of the model."""
    _clients.append(AsyncOpenAI(base_url=service.url, api_key="any", max_retries=0))
    return _clients[-1]


async def close_clients() -> None:
    """Close the clients that agents have used, in the event loop in which they did."""
    while _clients:
        await _clients.pop().close()


def openai_agent(service: ModelStandIn, tools: Iterable[Any] = (), **options: Any) -> Any:
    """Return an agent of the OpenAI Agents SDK."""
    from agents import Agent, OpenAIResponsesModel, function_tool, set_tracing_disabled

    set_tracing_disabled(True)
    chosen = list(tools) or [function_tool(weather)]
    model_of_the_sdk = OpenAIResponsesModel("scripted", client_of(service))
    return Agent(
        name="helper",
        model=model_of_the_sdk,
        tools=chosen,
        **{"instructions": "Be kind.", **options},
    )


def openai_chat_agent(service: ModelStandIn, tools: Iterable[Any] = (), **options: Any) -> Any:
    """Return an agent of the OpenAI Agents SDK whose model speaks chat completions."""
    from agents import OpenAIChatCompletionsModel

    chat = OpenAIChatCompletionsModel("scripted", client_of(service))
    return openai_agent(service, tools, **options).clone(model=chat)


def langchain_model(service: ModelStandIn) -> Any:
    """Return a chat model of LangChain."""
    from langchain_openai import ChatOpenAI

    client = client_of(service)
    return ChatOpenAI(
        model="scripted",
        api_key="any",
        stream_usage=True,
        # asyncio.wait_for of Python 3.11, which it uses for a limit, may swallow a cancellation.
        stream_chunk_timeout=None,
        root_async_client=client,
        async_client=client.chat.completions,
    )


def langgraph_agent(service: ModelStandIn, tools: Iterable[Any] = (), **options: Any) -> Any:
    """Return an agent of LangChain, which is a compiled graph of LangGraph."""
    from langchain.agents import create_agent

    return create_agent(
        langchain_model(service), list(tools) or [weather], system_prompt="Be kind.", **options
    )


def pydantic_agent(service: ModelStandIn, tools: Iterable[Any] = (), **options: Any) -> Any:
    """Return an agent of pydantic-ai."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    chat = OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client_of(service)))
    return Agent(chat, tools=list(tools) or [weather], system_prompt="Be kind.", **options)


AGENTS = (openai_agent, openai_chat_agent, langgraph_agent, pydantic_agent)
