// One check of the AI SDK: node ai_sdk.mjs PROVIDER CHECK. The environment names the server, as for its users.
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { openai } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

const base = process.env.OPENAI_BASE_URL;
const compatible = createOpenAICompatible({ name: "penstock", baseURL: base, apiKey: "any", includeUsage: true });
// This provider wants the version in its base URL; OpenAI's and Anthropic's own packages do not agree on that.
const anthropic = createAnthropic({ baseURL: `${process.env.ANTHROPIC_BASE_URL}/v1` });
const models = {
  responses: () => openai("mock"),
  chat: () => openai.chat("mock"),
  compatible: () => compatible("mock"),
  anthropic: () => anthropic("mock"),
};
const embedders = {
  responses: () => openai.embedding("mock"),
  compatible: () => compatible.textEmbeddingModel("mock"),
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

const [provider, check] = process.argv.slice(2);
const model = () => models[provider]();
const question = { prompt: "How is the weather in Paris?", tools: { weather }, stopWhen: stepCountIs(5) };
const thinking = { ...question, providerOptions: effort, maxOutputTokens: 4096 };

const ended = (steps, text) => {
  assert.equal(steps.length, 2);
  assert.equal(steps[0].toolCalls[0].toolName, "weather");
  assert.match(steps[0].toolResults[0].output, /^sun in /);
  assert.ok(text);
};
const whole = async (asked) => {
  const answer = await generateText({ model: model(), maxRetries: 0, ...asked });
  ended(answer.steps, answer.text);
};
const streamed = async (asked) => {
  const answer = streamText({ model: model(), maxRetries: 0, ...asked, onError: ({ error }) => { throw error; } });
  let text = "";
  for await (const part of answer.textStream) text += part;
  ended(await answer.steps, text);
};

const checks = {
  text: async () => {
    const answer = await generateText({ model: model(), maxRetries: 0, prompt: "hello" });
    assert.equal(answer.finishReason, "stop");
    assert.ok(answer.text);
  },
  text_streamed: async () => {
    const answer = streamText({ model: model(), maxRetries: 0, prompt: "hello" });
    let text = "";
    for await (const part of answer.textStream) text += part;
    assert.equal(await answer.finishReason, "stop");
    assert.ok(text);
    assert.ok((await answer.usage).outputTokens > 0);
  },
  tools: () => whole(question),
  tools_streamed: () => streamed(question),
  reasoning: () => whole(thinking),
  reasoning_streamed: () => streamed(thinking),
  object: async () => {
    const answer = await generateText({ model: model(), maxRetries: 0, prompt: "Paris", output: Output.object({ schema: city }) });
    assert.equal(typeof answer.output.name, "string");
    assert.equal(typeof answer.output.population, "number");
  },
  embeddings: async () => {
    const answer = await embedMany({ model: embedders[provider](), maxRetries: 0, values: ["one", "two"] });
    assert.equal(answer.embeddings.length, 2);
    assert.notDeepEqual(answer.embeddings[0], answer.embeddings[1]);
  },
};
await checks[check]();
