"""Tools: the schema of a function, and the results of calls."""

import asyncio
import dataclasses
import enum
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from agent_kit.context import RequestContext, use_context
from agent_kit.tools import Tool, ToolDefinitionError, ToolResult, as_tools, tool


def call(chosen: Tool, arguments: Any) -> ToolResult:
    """Call a tool as a model does."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return asyncio.run(chosen.call(text))


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclasses.dataclass
class Address:
    street: str
    number: int = 1


MAIN_STREET = Address("Main")


class Order(BaseModel):
    tea: str
    to: Address | None = None


@tool
def order(
    orders: list[Order],
    size: Size,
    kind: Literal["hot", "iced"] = "hot",
    sugar: Annotated[int, Field(ge=0, le=9), "spoons of sugar"] = 0,
    note: str | None = None,
    extras: dict[str, float] | None = None,
) -> str:
    """Order tea.

    It is brought to the table.

    Args:
        orders: what to bring
            and where to
        size (Size): how much of it
        note: anything else
    """
    return f"{orders[0].tea} {size.value} {kind} {sugar} {note} {orders[0].to} {extras}"


# Definitions ----------------------------------------------------------------------------------


def test_the_schema_follows_the_signature_and_the_docstring():
    definition = order.definition()
    properties = definition["parameters"]["properties"]
    assert (definition["type"], definition["name"], definition["strict"]) == (
        "function",
        "order",
        False,
    )
    assert definition["description"] == "Order tea.\n\nIt is brought to the table."
    assert definition["parameters"]["required"] == ["orders", "size"]
    assert definition["parameters"]["additionalProperties"] is False
    assert properties["orders"]["description"] == "what to bring and where to"
    assert properties["sugar"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 9,
        "default": 0,
        "description": "spoons of sugar",
    }
    assert properties["kind"]["enum"] == ["hot", "iced"]
    assert {"type": "null"} in properties["note"]["anyOf"]
    assert definition["parameters"]["$defs"]["Address"]["required"] == ["street"]


def test_arguments_are_converted_to_the_annotated_types():
    arguments = {
        "orders": [{"tea": "green", "to": {"street": "Main"}}],
        "size": "large",
        "sugar": None,
        "note": None,
        "extras": {"milk": 0.5},
    }
    expected = call(order, arguments).text
    assert expected == "green large hot 0 None Address(street='Main', number=1) {'milk': 0.5}"


def test_parameters_may_have_any_name():
    @tool
    def odd(schema: str, model_config: int, copy: bool = False, self: str = "me") -> Any:
        """Take odd names."""
        return [schema, model_config, copy, self]

    assert call(odd, {"schema": "a", "model_config": 1}).text == '["a",1,false,"me"]'


def test_a_method_and_a_callable_object_can_be_tools():
    class Counter:
        """Count."""

        def __init__(self) -> None:
            self.count = 0

        def add(self, number: int) -> int:
            """Add to the count."""
            self.count += number
            return self.count

    counter = Counter()
    assert call(Tool.from_function(counter.add), {"number": 2}).text == "2"
    assert counter.count == 2


def test_name_and_description_can_be_given():
    named = tool(name="brew-tea", description="Brew some tea.", max_characters=3)(lambda: "black")
    assert (named.name, named.definition()["description"]) == ("brew-tea", "Brew some tea.")
    assert call(named, "").text.startswith("bla\n[2 more characters")


def test_the_strict_schema_follows_structured_outputs():
    @tool(strict=True)
    def bring(what: Order, where: Address = MAIN_STREET, when: int = 1) -> str:
        """Bring it."""
        return f"{what.tea} {where.street} {when}"

    definition = bring.definition()
    schema = definition["parameters"]
    assert definition["strict"] is True
    assert schema["required"] == ["what", "where", "when"]
    assert "default" not in json.dumps(schema)
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
        assert part["required"] == list(part["properties"])
    arguments = {"what": {"tea": "a", "to": None}, "where": {"street": "b", "number": 2}, "when": 3}
    assert call(bring, arguments).text == "a b 3"


class Socket:
    pass


def no_docstring(name: str) -> str:
    return name


def only_parameters(name: str) -> str:
    """Args:
    name: expected
    """
    return name


def no_type(name) -> str:
    """Say."""
    return name


def of_socket(socket: Socket) -> str:
    """Say."""
    return str(socket)


def of_function(then: Callable[[], str]) -> str:
    """Say."""
    return str(then)


def many(*names: str) -> str:
    """Say."""
    return names[0]


def more(**names: str) -> str:
    """Say."""
    return names["a"]


def by_position(name: str, /) -> str:
    """Say."""
    return name


def yielding(name: str):
    """Say."""
    yield name


def unknown(name: "Missing") -> str:  # noqa: F821
    """Say."""
    return name


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (no_docstring, "no_docstring .*no docstring"),
        (only_parameters, "no docstring"),
        (no_type, "name has no type. Write name: str"),
        (of_socket, "type Socket of its parameter socket"),
        (of_function, "Callable .*parameter then"),
        (many, r"\*names has no schema"),
        (more, r"\*\*names has no schema"),
        (by_position, "Remove the '/'"),
        (yielding, "it yields"),
        (unknown, "annotations cannot be read .*Missing"),
        (Socket, "not a function"),
        (lambda: 1, "docstring"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_with_a_reason(function, expected):
    with pytest.raises(ToolDefinitionError, match=expected):
        tool(function)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "two words"}, "cannot name a tool"),
        ({"timeout_seconds": 0}, "timeout_seconds .*must be more than 0"),
        ({"max_characters": -1}, "max_characters .*must be more than 0"),
    ],
)
def test_wrong_options_are_refused(options, expected):
    with pytest.raises(ToolDefinitionError, match=expected):
        Tool.from_function(order.function, **options)


def test_free_keys_are_not_strict():
    def take(arguments: dict[str, int]) -> str:
        """Take."""
        return ""

    assert tool(take).parameters["properties"]["arguments"]["type"] == "object"
    with pytest.raises(ToolDefinitionError, match="free keys"):
        tool(strict=True)(take)


def test_two_tools_with_one_name_are_refused():
    with pytest.raises(ToolDefinitionError, match="two tools are named order"):
        as_tools([order, order.function])


# Bad arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"orders": [', ["not valid JSON"]),
        ("[1]", ["JSON object"]),
        ("", ["orders: it is required", "size: it is required"]),
        ({"orders": [], "size": "huge"}, ["size: Input should be 'small' or 'large'", "'huge'"]),
        ({"orders": [{}], "size": "small"}, ["orders.0.tea: it is required"]),
        ({"orders": [], "size": "small", "milk": 1}, ["milk: there is no such", "orders, size"]),
        ({"orders": [], "size": "small", "sugar": 10}, ["sugar: Input should be less than"]),
        ({"orders": None, "size": "small"}, ["orders: Input should be a valid array"]),
    ],
)
def test_bad_arguments_are_explained_to_the_model(arguments, expected):
    result = call(order, arguments)
    assert result.failed
    for part in expected:
        assert part in result.text


def test_secrets_in_arguments_are_not_repeated():
    result = call(order, {"orders": [], "size": "sk-abcdefghijklmnopqrstuv"})
    assert result.failed
    assert "abcdefghij" not in result.text


# Failures -------------------------------------------------------------------------------------


def failing(kind: str) -> str:
    """Fail."""
    if kind == "exit":
        raise SystemExit(3)
    if kind == "stop":
        raise StopIteration
    if kind == "time":
        raise TimeoutError
    if kind == "cancel":
        raise asyncio.CancelledError
    raise ValueError("see https://user:hunter2@example.com")


async def failing_async(kind: str) -> str:
    """Fail."""
    return failing(kind)


@pytest.mark.parametrize("function", [failing, failing_async])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("exit", "SystemExit"),
        ("time", "failed: TimeoutError"),
        ("value", "failed: ValueError: see https://user:***@example.com"),
    ],
)
def test_an_exception_becomes_text(function, kind, expected, caplog):
    with caplog.at_level(logging.WARNING):
        result = call(tool(function), {"kind": kind})
    assert result.failed
    assert expected in result.text
    assert "Traceback" in caplog.text
    assert "hunter2" not in caplog.text


def test_exceptions_of_asyncio_become_text():
    assert "StopIteration" in call(tool(failing), {"kind": "stop"}).text
    assert "CancelledError" in call(tool(failing_async), {"kind": "cancel"}).text


@pytest.mark.parametrize("is_async", [True, False])
def test_a_call_ends_on_time(is_async):
    ended = threading.Event()

    async def slow_async() -> None:
        """Be slow."""
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    def slow() -> None:
        """Be slow."""
        ended.wait(0.3)

    begun = time.monotonic()
    result = call(tool(timeout_seconds=0.05)(slow_async if is_async else slow), {})
    assert result == ToolResult(
        f"{result.text.split()[0]} failed: it took longer than 0.05 s", True
    )
    assert time.monotonic() - begun < 3
    assert ended.is_set() == is_async
    ended.set()


def test_a_cancelled_call_is_cancelled():
    async def cancel() -> None:
        @tool
        async def wait() -> None:
            """Wait."""
            await asyncio.sleep(60)

        task = asyncio.create_task(wait.call("{}"))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())


# Results --------------------------------------------------------------------------------------


class Table:
    def __str__(self) -> str:
        return "a | b"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "text"),
        ("half \ud83d", "half ?"),
        (None, "null"),
        ({"a": (1, 2.5), "b": {3}}, '{"a":[1,2.5],"b":[3]}'),
        (Order(tea="green"), '{"tea":"green","to":null}'),
        (Address("Main"), '{"street":"Main","number":1}'),
        ([float("nan")], '["NaN"]'),
        (b"\xff", '"_w=="'),
        (Table(), '"a | b"'),
        (Size.LARGE, '"large"'),
    ],
)
def test_results_become_text(value, text):
    def give() -> Any:
        """Give."""
        return value

    assert call(tool(give), {}) == ToolResult(text)


def test_a_circular_result_is_a_failure():
    def give() -> Any:
        """Give."""
        value: list[Any] = []
        value.append(value)
        return value

    assert call(tool(give), {}).failed


def test_large_results_are_truncated_with_a_note():
    def give() -> str:
        """Give."""
        return "x" * 60_000

    text = call(tool(give), {}).text
    assert text == "x" * 50_000 + "\n[10,000 more characters were omitted]"


# Context and threads --------------------------------------------------------------------------


@tool
def who(context: RequestContext, greeting: str = "Hello") -> str:
    """Say who asks."""
    return f"{greeting}, {context.user}"


@tool
async def who_if_any(context: RequestContext | None = None) -> str:
    """Say who asks."""
    return context.user or "" if context else "no one"


def test_a_tool_may_use_the_context():
    assert list(who.parameters["properties"]) == ["greeting"]
    with use_context(RequestContext("request-1", user="Ada")):
        assert call(who, {}).text == "Hello, Ada"
        assert call(who_if_any, {}).text == "Ada"
        assert call(who, {"context": {}}).failed


def test_outside_of_a_request_there_is_no_context():
    assert call(who_if_any, {}).text == "no one"
    result = call(who, {})
    assert result.failed
    assert "context of a request" in result.text


def test_plain_functions_run_concurrently():
    together = threading.Barrier(8)

    @tool
    def meet() -> str:
        """Meet the others."""
        return str(together.wait(60) >= 0)

    async def all_at_once() -> list[ToolResult]:
        return await asyncio.gather(*(meet.call("{}") for _ in range(8)))

    assert {result.text for result in asyncio.run(all_at_once())} == {"True"}


def test_a_plain_function_may_return_an_awaitable():
    async def later() -> str:
        return "later"

    @tool
    def give() -> Any:
        """Give."""
        return later()

    assert call(give, {}).text == "later"


def test_a_tool_is_still_a_function():
    assert who(RequestContext("request-1", user="Ada"), greeting="Hi") == "Hi, Ada"
    assert asyncio.run(who_if_any()) == "no one"

    async def run(arguments: dict[str, Any]) -> str:
        return "ran"

    remote = Tool("remote", "Elsewhere.", {"type": "object"}, run)
    assert call(remote, {}).text == "ran"
    with pytest.raises(TypeError, match="not a function"):
        remote()
