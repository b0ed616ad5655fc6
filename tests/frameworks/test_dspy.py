"""Programs of DSPy behind `server.use`."""

import asyncio
from typing import Any

from support.framework_agents import model

from agent_kit.server import create_server
from agent_kit.settings import Settings


def two_turns(program: Any) -> list[Any]:
    server = create_server(settings=Settings.model_validate({"mlflow": {"tracing": False}}))
    server.use(program)

    async def talk() -> list[Any]:
        async with server.client() as client:
            first = await client.responses.create(input="What is 17*23?")
            again = {"previous_response_id": first.id}
            return [first, await client.responses.create(input="And 1+1?", **again)]

    return asyncio.run(talk())


def test_a_program_thinks_answers_and_knows_the_history() -> None:
    import dspy

    class Solve(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.solve = dspy.ChainOfThought("question -> answer")

        async def aforward(self, question: str) -> Any:
            return await self.solve.acall(question=question)

    answers = [
        "[[ ## reasoning ## ]]\nSimple.\n\n[[ ## answer ## ]]\n391\n\n[[ ## completed ## ]]",
        "[[ ## reasoning ## ]]\nSimple.\n\n[[ ## answer ## ]]\n2\n\n[[ ## completed ## ]]",
    ]
    with_history = dspy.Predict("question, history: dspy.History -> answer")
    for program in (Solve(), with_history):
        with model(answers) as service:
            lm = dspy.LM("openai/scripted", api_base=service.url, api_key="any", cache=False)
            with dspy.context(lm=lm):
                first, second = two_turns(program)
            said = str(service.requests[-1].body["messages"])
        assert [first.output_text, second.output_text] == ["391", "2"]
        if program is not with_history:
            assert first.output[0].type == "reasoning"
        assert ("What is 17*23?" in said) == (program is with_history)
