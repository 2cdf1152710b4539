// The packages of OpenAI and Anthropic for node: node official.mjs. Prints an object: for each check its error, or null.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
import OpenAI from "openai";

const openai = new OpenAI({ maxRetries: 0 });
const anthropic = new Anthropic({ maxRetries: 0 });
const messages = [{ role: "user", content: "How is the weather in Paris?" }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const weather = ({ city }) => `sun in ${city}`;
const runner = (options) => {
  const tool = { type: "function", function: { name: "weather", description: "…", parameters, parse: JSON.parse, function: weather } };
  return openai.chat.completions.runTools({ model: "mock", messages, tools: [tool], ...options });
};
const called = (roles) => assert.ok(roles.includes("tool") && roles.at(-1) === "assistant", roles.join());

const checks = {
  openai_chat_streamed: async () => {
    const stream = openai.chat.completions.stream({ model: "mock", messages });
    const text = await stream.finalContent();
    const whole = await openai.chat.completions.create({ model: "mock", messages });
    assert.equal(text, whole.choices[0].message.content);
  },
  openai_tools: async () => {
    const run = runner({});
    assert.ok(await run.finalContent());
    called(run.messages.map((message) => message.role));
  },
  openai_tools_streamed: async () => {
    const run = runner({ stream: true });
    assert.ok(await run.finalContent());
    called(run.messages.map((message) => message.role));
  },
  openai_responses_streamed: async () => {
    const answer = await openai.responses.stream({ model: "mock", input: "hello" }).finalResponse();
    assert.equal(answer.status, "completed");
    assert.ok(answer.output_text);
  },
  openai_embeddings: async () => {
    const answer = await openai.embeddings.create({ model: "mock", input: ["one", "two"] });
    assert.equal(answer.data.length, 2);
  },
  anthropic_streamed: async () => {
    const answer = await anthropic.messages.stream({ model: "mock", max_tokens: 1000, messages }).finalMessage();
    assert.equal(answer.stop_reason, "end_turn");
    assert.ok(answer.content[0].text);
  },
  anthropic_tool_runner: async () => {
    const tool = betaTool({ name: "weather", description: "…", inputSchema: parameters, run: weather });
    const answer = await anthropic.beta.messages.toolRunner({ model: "mock", max_tokens: 1000, messages, tools: [tool] });
    assert.equal(answer.stop_reason, "end_turn");
    assert.ok(answer.content[0].text);
  },
};
const outcomes = {};
for (const [name, check] of Object.entries(checks)) {
  outcomes[name] = await check().then(() => null, (error) => String(error.stack));
}
console.log(JSON.stringify(outcomes));
