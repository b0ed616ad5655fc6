"""Python clients of other projects against a server: `python scenarios.py CLIENT URL FACE`.

CLIENT is a key of `CLIENTS`, FACE `responses` or `chat`. Prints one JSON object: what each scenario
saw, or the error it ended with. It imports nothing of the kit, so it also runs in an environment
of its own.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

Report = dict[str, Callable[[], Any]]
WEATHER_OF_TWO = "Weather in Paris and Rome"


class Weather(BaseModel):
    city: str
    degrees: float


def weather_tool(cities: list[str]) -> Callable[[str], str]:
    """Return a function for the weather; it adds the cities that it is asked for to `cities`."""

    def get_weather(city: str) -> str:
        """Return the weather of a city."""
        cities.append(city)
        return f"sunny in {city}"

    return get_weather


def langchain(url: str, face: str) -> Report:
    """LangChain's ChatOpenAI."""
    from langchain_core.messages import ToolMessage
    from langchain_openai import ChatOpenAI

    is_responses = face == "responses"
    model = ChatOpenAI(
        model="agent", base_url=url, api_key="any", max_retries=0, use_responses_api=is_responses
    )

    def tools() -> dict[str, Any]:
        cities: list[str] = []
        get_weather = weather_tool(cities)
        bound = model.bind_tools([get_weather])
        messages: list[Any] = [("user", WEATHER_OF_TWO)]
        messages.append(bound.invoke(messages))
        for call in messages[-1].tool_calls:
            messages.append(ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"]))
        return {"cities": cities, "text": bound.invoke(messages).text}

    def server_tool() -> str:
        messages: list[Any] = [("user", "Compute it")]
        messages += [model.invoke(messages), ("user", "What was it?")]
        return model.invoke(messages).text

    return {
        "plain": lambda: model.invoke("Say hello").text,
        "stream": lambda: [text for chunk in model.stream("Say hello") if (text := chunk.text)],
        "tools": tools,
        "schema": lambda: model.with_structured_output(Weather).invoke("As an object").model_dump(),
        "server_tool": server_tool,
    }


def litellm(url: str, face: str) -> Report:
    """LiteLLM's `responses` and `completion`."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    options: Any = {"model": "openai/agent", "api_base": url, "api_key": "any", "max_retries": 0}
    if face == "responses":
        return litellm_responses(lambda **sent: litellm.responses(**options, **sent))
    return litellm_chat(lambda **sent: litellm.completion(**options, **sent))


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"name": "get_weather", "parameters": PARAMETERS}


def litellm_responses(ask: Callable[..., Any]) -> Report:
    def text(response: Any) -> str:
        messages = [item for item in response.output if item.type == "message"]
        return "".join(part.text for item in messages for part in item.content)

    def asked(content: str) -> dict[str, str]:
        return {"role": "user", "content": content}

    def stream() -> list[str]:
        events = ask(input="Say hello", stream=True)
        return [event.delta for event in events if event.type == "response.output_text.delta"]

    def tools() -> dict[str, Any]:
        cities: list[str] = []
        sent = {"tools": [{"type": "function", **FUNCTION}], "store": False}
        items: list[Any] = [asked(WEATHER_OF_TWO)]
        calls = ask(input=items, **sent).output
        items += [call.model_dump() for call in calls]
        for call in calls:
            output = weather_tool(cities)(**json.loads(call.arguments))
            items.append(
                {"type": "function_call_output", "call_id": call.call_id, "output": output}
            )
        return {"cities": cities, "text": text(ask(input=items, **sent))}

    def server_tool() -> str:
        items = [asked("Compute it")]
        items += [item.model_dump() for item in ask(input=items).output]
        return text(ask(input=[*items, asked("What was it?")]))

    return {
        "plain": lambda: text(ask(input="Say hello")),
        "stream": stream,
        "tools": tools,
        "schema": lambda: json.loads(text(ask(input="As an object", text_format=Weather))),
        "server_tool": server_tool,
    }


def litellm_chat(ask: Callable[..., Any]) -> Report:
    def asked(content: str) -> list[Any]:
        return [{"role": "user", "content": content}]

    def text(response: Any) -> str:
        return response.choices[0].message.content

    def stream() -> list[str]:
        chunks = ask(messages=asked("Say hello"), stream=True)
        return [delta for chunk in chunks if (delta := chunk.choices[0].delta.content)]

    def tools() -> dict[str, Any]:
        cities: list[str] = []
        offered = [{"type": "function", "function": FUNCTION}]
        messages = asked(WEATHER_OF_TWO)
        messages.append(ask(messages=messages, tools=offered).choices[0].message.model_dump())
        for call in messages[-1]["tool_calls"]:
            output = weather_tool(cities)(**json.loads(call["function"]["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": output})
        return {"cities": cities, "text": text(ask(messages=messages, tools=offered))}

    def server_tool() -> str:
        messages = asked("Compute it")
        messages.append(ask(messages=messages).choices[0].message.model_dump())
        return text(ask(messages=[*messages, *asked("What was it?")]))

    return {
        "plain": lambda: text(ask(messages=asked("Say hello"))),
        "stream": stream,
        "tools": tools,
        "schema": lambda: json.loads(
            text(ask(messages=asked("As an object"), response_format=Weather))
        ),
        "server_tool": server_tool,
    }


def llama_index(url: str, face: str) -> Report:
    """LlamaIndex's OpenAIResponses and OpenAILike."""
    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai import OpenAI, OpenAIResponses

    kind = OpenAIResponses if face == "responses" else OpenAI
    # LlamaIndex knows the abilities of OpenAI's models alone.
    model = kind(model="gpt-4o", api_base=url, api_key="any", max_retries=0)

    def asked(content: str) -> list[ChatMessage]:
        return [ChatMessage(role="user", content=content)]

    def tools() -> dict[str, Any]:
        cities: list[str] = []
        get_weather = weather_tool(cities)
        offered = [FunctionTool.from_defaults(get_weather)]
        messages = asked(WEATHER_OF_TWO)
        answer = model.chat_with_tools(
            offered, chat_history=messages, allow_parallel_tool_calls=True
        )
        messages.append(answer.message)
        for call in model.get_tool_calls_from_response(answer):
            output = get_weather(**call.tool_kwargs)
            more = {"tool_call_id": call.tool_id, "call_id": call.tool_id}
            messages.append(ChatMessage(role="tool", content=output, additional_kwargs=more))
        return {"cities": cities, "text": model.chat(messages).message.content}

    def server_tool() -> str:
        messages = asked("Compute it")
        messages.append(model.chat(messages).message)
        return model.chat([*messages, *asked("What was it?")]).message.content

    def schema() -> dict[str, Any]:
        structured = model.as_structured_llm(Weather)
        return structured.chat(asked("As an object")).raw.model_dump()

    return {
        "plain": lambda: model.complete("Say hello").text,
        "stream": lambda: [
            chunk.delta for chunk in model.stream_chat(asked("Say hello")) if chunk.delta
        ],
        "tools": tools,
        "schema": schema,
        "server_tool": server_tool,
    }


def pydantic_ai(url: str, face: str) -> Report:
    """Pydantic AI's Agent."""
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    kind = OpenAIResponsesModel if face == "responses" else OpenAIChatModel
    model = kind("agent", provider=OpenAIProvider(base_url=url, api_key="any"))

    async def stream() -> list[str]:
        async with Agent(model).run_stream("Say hello") as result:
            return [text async for text in result.stream_text(delta=True, debounce_by=None)]

    async def tools() -> dict[str, Any]:
        cities: list[str] = []
        agent = Agent(model, tools=[weather_tool(cities)])
        result = await agent.run(WEATHER_OF_TWO)
        return {"cities": sorted(cities), "text": result.output}

    async def schema() -> dict[str, Any]:
        agent = Agent(model, output_type=NativeOutput(Weather))
        return (await agent.run("As an object")).output.model_dump()

    async def server_tool() -> str:
        first = await Agent(model).run("Compute it")
        again = await Agent(model).run("What was it?", message_history=first.all_messages())
        return again.output

    async def plain() -> str:
        return (await Agent(model).run("Say hello")).output

    return {
        "plain": plain,
        "stream": stream,
        "tools": tools,
        "schema": schema,
        "server_tool": server_tool,
    }


CLIENTS = {
    "langchain": langchain,
    "litellm": litellm,
    "llama-index": llama_index,
    "pydantic-ai": pydantic_ai,
}


async def main(client: str, url: str, face: str) -> None:
    report: dict[str, Any] = {}
    for name, scenario in CLIENTS[client](f"{url}/v1", face).items():
        try:
            value = scenario()
            report[name] = await value if asyncio.iscoroutine(value) else value
        except Exception as error:
            report[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
