// The AI SDK with one of its providers: node ai_sdk.mjs PROVIDER. Prints an object: for each check its error, or null.
// The environment names the server, as for its users.
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { openai } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

const compatible = createOpenAICompatible({
  name: "penstock",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: "any",
  includeUsage: true,
  supportsStructuredOutputs: true, // else this provider asks for any JSON, and puts the schema into the prompt
});
// Anthropic's own package adds the version to its base URL; this provider does not.
const anthropic = createAnthropic({ baseURL: `${process.env.ANTHROPIC_BASE_URL}/v1` });
const models = {
  responses: openai("mock"),
  chat: openai.chat("mock"),
  compatible: compatible("mock"),
  anthropic: anthropic("mock"),
};
const embedders = {
  responses: openai.embedding("mock"),
  compatible: compatible.textEmbeddingModel("mock"),
};
const effort = {
  openai: { reasoningEffort: "low", reasoningSummary: "auto", forceReasoning: true },
  penstock: { reasoningEffort: "low" },
  anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } },
};
const weather = tool({
  description: "The weather of a city.",
  inputSchema: jsonSchema({
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
    additionalProperties: false,
  }),
  execute: async ({ city }) => `sun in ${city}`,
});
const city = jsonSchema({
  type: "object",
  properties: { name: { type: "string" }, population: { type: "integer" } },
  required: ["name", "population"],
  additionalProperties: false,
});

const provider = process.argv[2];
const model = models[provider];
const plain = { model, maxRetries: 0, prompt: "hello" };
const question = { ...plain, prompt: "How is the weather in Paris?", tools: { weather }, stopWhen: stepCountIs(5) };
const thinking = { ...question, providerOptions: effort, maxOutputTokens: 4096 };

const ended = (steps, text) => {
  assert.equal(steps.length, 2);
  assert.equal(steps[0].toolCalls[0].toolName, "weather");
  assert.match(steps[0].toolResults[0].output, /^sun in /);
  assert.ok(text);
};
const whole = async (asked) => {
  const answer = await generateText(asked);
  ended(answer.steps, answer.text);
};
const read = async (asked) => {
  const answer = streamText({ ...asked, onError: () => {} });
  let text = "";
  for await (const part of answer.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") text += part.text;
  }
  return { answer, text };
};
const streamed = async (asked) => {
  const { answer, text } = await read(asked);
  ended(await answer.steps, text);
};

const checks = {
  text: async () => {
    const answer = await generateText(plain);
    assert.equal(answer.finishReason, "stop");
    assert.ok(answer.text);
  },
  text_streamed: async () => {
    const { answer, text } = await read(plain);
    assert.equal(await answer.finishReason, "stop");
    assert.ok(text);
    assert.ok((await answer.usage).outputTokens > 0);
  },
  tools: () => whole(question),
  tools_streamed: () => streamed(question),
  tools_with_reasoning: () => whole(thinking),
  tools_with_reasoning_streamed: () => streamed(thinking),
  an_object_by_schema: async () => {
    const { output } = await generateText({ ...plain, output: Output.object({ schema: city }) });
    assert.equal(typeof output.name, "string");
    assert.equal(typeof output.population, "number");
  },
  embeddings: async () => {
    if (!embedders[provider]) return;
    const { embeddings } = await embedMany({ model: embedders[provider], maxRetries: 0, values: ["one", "two"] });
    assert.equal(embeddings.length, 2);
    assert.notDeepEqual(embeddings[0], embeddings[1]);
  },
};
const outcomes = {};
for (const [name, check] of Object.entries(checks)) {
  outcomes[name] = await check().then(() => null, (error) => `${error.stack} ${error.responseBody ?? ""}`);
}
console.log(JSON.stringify(outcomes));
