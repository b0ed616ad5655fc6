// The Vercel AI SDK against a server: `node ai_sdk.mjs URL FACE VERSION`, FACE being `responses` or
// `chat`, VERSION 6 or 7. Prints one JSON object: what each scenario saw, or the error it ended with.
import { z } from "zod";

const [url, face, version] = process.argv.slice(2);
const { createOpenAI } = await import(version === "6" ? "@ai-sdk/openai-3" : "@ai-sdk/openai");
const { generateObject, generateText, stepCountIs, streamObject, streamText, tool } = await import(
  version === "6" ? "ai-6" : "ai"
);
const bodies = [];
const openai = createOpenAI({
  baseURL: `${url}/v1`,
  apiKey: "any",
  fetch(address, options) {
    bodies.push(JSON.parse(options.body));
    return fetch(address, options);
  },
});
const model = openai[face]("agent");
const schema = z.object({ city: z.string(), degrees: z.number() });
const picture =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

function weather(asked) {
  return tool({
    description: "Tell the weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      asked.push(city);
      return `sunny in ${city}`;
    },
  });
}

async function all(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

function ownTools(asked, steps, text) {
  const content = steps.flatMap((step) => step.content);
  const run = content.filter((part) => part.type === "tool-result" && part.providerExecuted);
  return {
    asked,
    text,
    run: run.map((part) => [part.toolName, part.output.output]),
    invalid: content.filter((part) => part.invalid || part.type === "tool-error").length,
  };
}

const scenarios = {
  async text() {
    const { text, usage, finishReason } = await generateText({ model, prompt: "Say hello" });
    return { text, usage, finishReason };
  },
  async conversation() {
    const messages = [
      { role: "user", content: "My name is Ada." },
      { role: "assistant", content: "Hello Ada." },
      { role: "user", content: "Repeat the conversation" },
    ];
    return { text: (await generateText({ model, system: "Be brief.", messages })).text };
  },
  async picture() {
    const content = [
      { type: "text", text: "Name the parts" },
      { type: "image", image: picture, mediaType: "image/png" },
    ];
    return { text: (await generateText({ model, messages: [{ role: "user", content }] })).text };
  },
  async stream() {
    const result = streamText({ model, prompt: "Say hello" });
    const pieces = await all(result.textStream);
    return { pieces, text: await result.text, finishReason: await result.finishReason };
  },
  async tools() {
    const asked = [];
    const result = await generateText({
      model,
      prompt: "Weather in Paris and Rome",
      tools: { get_weather: weather(asked) },
      stopWhen: stepCountIs(3),
    });
    return { asked, text: result.text, steps: result.steps.map((step) => step.finishReason) };
  },
  async streamed_tools() {
    const asked = [];
    const result = streamText({
      model,
      prompt: "Weather in Paris and Rome",
      tools: { get_weather: weather(asked) },
      stopWhen: stepCountIs(3),
    });
    const kinds = [...new Set((await all(result.fullStream)).map((part) => part.type))];
    return { asked, kinds, text: await result.text };
  },
  async own_tools() {
    const asked = [];
    const result = await generateText({
      model,
      prompt: "Compute and tell the weather in Paris",
      tools: { get_weather: weather(asked) },
      stopWhen: stepCountIs(3),
    });
    return ownTools(asked, result.steps, result.text);
  },
  async streamed_own_tools() {
    const asked = [];
    const result = streamText({
      model,
      prompt: "Compute and tell the weather in Paris",
      tools: { get_weather: weather(asked) },
      stopWhen: stepCountIs(3),
    });
    return ownTools(asked, await result.steps, await result.text);
  },
  async chosen_tool() {
    const asked = [];
    const result = await generateText({
      model,
      prompt: "Say hello",
      tools: { get_weather: weather(asked) },
      toolChoice: { type: "tool", toolName: "get_weather" },
    });
    return { calls: result.toolCalls.map((call) => call.toolName), asked };
  },
  async object() {
    const result = await generateObject({ model, schema, prompt: "Weather as an object" });
    return { object: result.object };
  },
  async streamed_object() {
    const result = streamObject({ model, schema, prompt: "Weather as an object" });
    const partials = await all(result.partialObjectStream);
    return { object: await result.object, partials: partials.length };
  },
  async reasoning() {
    const result = streamText({ model, prompt: "Think first" });
    const kinds = (await all(result.fullStream)).map((part) => part.type);
    return { text: await result.text, kinds };
  },
  async refused() {
    const result = generateText({ model, prompt: "Fail", maxRetries: 0 });
    const error = await result.then(() => null, (error) => error);
    return { name: error?.name, status: error?.statusCode, message: error?.message };
  },
  async failed_stream() {
    const result = streamText({ model, prompt: "Fail late", maxRetries: 0, onError() {} });
    const parts = await all(result.fullStream);
    const errors = parts.filter((part) => part.type === "error").map((part) => part.error);
    return { errors: errors.map((error) => error?.message ?? JSON.stringify(error)) };
  },
  async stopped() {
    const stop = new AbortController();
    const result = streamText({ model, prompt: "Never end", abortSignal: stop.signal });
    const kinds = [];
    for await (const part of result.fullStream) {
      kinds.push(part.type);
      if (part.type === "text-delta") stop.abort();
    }
    return { last: kinds.at(-1) };
  },
};

// What needs stored responses or conversations.
const remembering = {
  async continued() {
    const first = await generateText({ model, prompt: "My name is Ada." });
    const previousResponseId = first.providerMetadata.openai.responseId;
    const providerOptions = { openai: { previousResponseId } };
    const { text } = await generateText({ model, prompt: "Repeat", providerOptions });
    return { text };
  },
  async referred() {
    const asked = { role: "user", content: "Say hello" };
    const { response } = await generateText({ model, messages: [asked] });
    const messages = [asked, ...response.messages, { role: "user", content: "Repeat" }];
    const again = await generateText({ model, messages });
    return { text: again.text, input: bodies.at(-1).input.map((item) => item.type) };
  },
  async thought_loop() {
    const asked = [];
    const result = await generateText({
      model: openai.responses("gpt-5"),
      prompt: "Think of the weather in Paris",
      tools: { get_weather: weather(asked) },
      stopWhen: stepCountIs(3),
    });
    const input = bodies.at(-1).input.map((item) => item.type ?? item.role);
    return { text: result.text, asked, input };
  },
  async conversation_id() {
    const init = { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" };
    const { id } = await (await fetch(`${url}/v1/conversations`, init)).json();
    const providerOptions = { openai: { conversation: id } };
    await generateText({ model, prompt: "My name is Ada.", providerOptions });
    return { text: (await generateText({ model, prompt: "Repeat", providerOptions })).text };
  },
};
if (face === "responses") Object.assign(scenarios, remembering);

const told = {};
for (const [name, scenario] of Object.entries(scenarios)) {
  try {
    told[name] = await scenario();
  } catch (error) {
    told[name] = { error: `${error.name}: ${error.message}` };
  }
}
console.log(JSON.stringify(told));
