// OpenAI's Agents SDK for JavaScript against a server: `node agents_sdk.mjs URL FACE`, FACE being
// `responses` or `chat`. Prints one JSON object: what each scenario saw, or the error it ended with.
import {
  Agent,
  OpenAIChatCompletionsModel,
  OpenAIResponsesModel,
  Runner,
  tool,
} from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";

const [url, face] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
const models = { responses: OpenAIResponsesModel, chat: OpenAIChatCompletionsModel };
const runner = new Runner({ tracingDisabled: true });

function newAgent(asked, options = {}) {
  const weather = tool({
    name: "get_weather",
    description: "Return the weather of a city.",
    parameters: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      asked.push(city);
      return `sunny in ${city}`;
    },
  });
  const model = new models[face](client, "agent");
  const instructions = "Be brief.";
  return new Agent({ name: "Reporter", instructions, model, tools: [weather], ...options });
}

async function streamed(agent, question) {
  const stream = await runner.run(agent, question, { stream: true });
  const kinds = new Set();
  let text = "";
  for await (const event of stream) {
    kinds.add(event.type);
    if (event.type === "raw_model_stream_event" && event.data.type === "output_text_delta") {
      text += event.data.delta;
    }
  }
  await stream.completed;
  return { text, output: stream.finalOutput, kinds: [...kinds].sort() };
}

// The next turn, with the history that the SDK itself makes of the first one.
async function secondTurn(question, next) {
  const agent = newAgent([]);
  const first = await runner.run(agent, question);
  const history = [...first.history, { role: "user", content: next }];
  return { first: first.finalOutput, second: (await runner.run(agent, history)).finalOutput };
}

const scenarios = {
  async plain() {
    return { output: (await runner.run(newAgent([]), "Say hello")).finalOutput };
  },
  async stream() {
    return await streamed(newAgent([]), "Say hello");
  },
  async tools() {
    const asked = [];
    const { finalOutput } = await runner.run(newAgent(asked), "Weather in Paris and Rome");
    return { asked: asked.sort(), output: finalOutput };
  },
  async streamed_tools() {
    const asked = [];
    const { output } = await streamed(newAgent(asked), "Weather in Paris and Rome");
    return { asked: asked.sort(), output };
  },
  async object() {
    const outputType = z.object({ city: z.string(), degrees: z.number() });
    return { output: (await runner.run(newAgent([], { outputType }), "As an object")).finalOutput };
  },
  async server_tool() {
    return await secondTurn("Compute it", "What was it?");
  },
};

const report = {};
for (const [name, scenario] of Object.entries(scenarios)) {
  try {
    report[name] = await scenario();
  } catch (error) {
    report[name] = { error: `${error.name}: ${error.message}` };
  }
}
console.log(JSON.stringify(report));
