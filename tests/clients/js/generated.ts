// A program over the types that openapi-typescript makes of the OpenAPI document: node generated.js URL.
// It is run, and read by `tsc --strict`: a field that may be absent or null must be treated as such here.
import type { components, operations } from "./penstock.js";

declare const process: { argv: string[] };

type Schemas = components["schemas"];
type Answer<Name extends keyof operations> = operations[Name] extends {
  responses: { 200: { content: { "application/json": infer Whole } } };
}
  ? Whole
  : never;
type Event<Name extends keyof operations> = operations[Name] extends {
  responses: { 200: { content: { "text/event-stream": infer One } } };
}
  ? One
  : never;

const base = process.argv[2];

function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

async function ask(path: string, body?: unknown): Promise<Response> {
  const headers = { "content-type": "application/json" };
  return fetch(base + path, body === undefined ? {} : { method: "POST", headers, body: JSON.stringify(body) });
}

async function whole<Name extends keyof operations>(path: string, body?: unknown): Promise<Answer<Name>> {
  const answer = await ask(path, body);
  check(answer.status === 200, `${path}: ${answer.status}`);
  return answer.json() as Promise<Answer<Name>>;
}

async function stream<Name extends keyof operations>(path: string, body: unknown): Promise<Event<Name>[]> {
  const lines = (await (await ask(path, body)).text()).split("\n");
  const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
  return data.filter((one) => one !== "[DONE]").map((one) => JSON.parse(one) as Event<Name>);
}

const messages: Schemas["ChatMessage"][] = [{ role: "user", content: "hello" }];

async function chat(): Promise<void> {
  const body: Schemas["ChatBody"] = { model: "mock", messages, max_tokens: 8 };
  const answer = await whole<"chat_completions_create">("/v1/chat/completions", body);
  const text: string | null = answer.choices[0].message.content;
  let streamed = "";
  for (const event of await stream<"chat_completions_create">("/v1/chat/completions", { ...body, stream: true })) {
    if ("error" in event) throw new Error(event.error.message);
    for (const choice of event.choices) streamed += choice.delta.content ?? "";
  }
  check(text !== null && text.length > 0 && text === streamed, "chat");
  check(answer.usage.completion_tokens > 0, "usage");
}

async function responses(): Promise<void> {
  const body: Schemas["ResponseBody"] = { model: "mock", input: "hello", max_output_tokens: 8 };
  const answer = await whole<"responses_create">("/v1/responses", body);
  const [item] = answer.output;
  if (item.type !== "message") throw new Error(item.type);
  let streamed = "";
  for (const event of await stream<"responses_create">("/v1/responses", { ...body, stream: true })) {
    if (event.type === "response.output_text.delta") streamed += event.delta;
    else if (event.type === "error") throw new Error(event.message);
  }
  check(item.content[0].text.length > 0 && item.content[0].text === streamed, "responses");
}

async function message(): Promise<void> {
  const body: Schemas["MessagesBody"] = { model: "mock", max_tokens: 8, messages: [{ role: "user", content: "hello" }] };
  const answer = await whole<"messages_create">("/v1/messages", body);
  let text = "";
  for (const block of answer.content) if (block.type === "text") text += block.text;
  let streamed = "";
  for (const event of await stream<"messages_create">("/v1/messages", { ...body, stream: true })) {
    if (event.type === "content_block_delta" && event.delta.type === "text_delta") streamed += event.delta.text;
  }
  check(text.length > 0 && text === streamed, "messages");
}

async function generate(): Promise<void> {
  const body: Schemas["GenerateBody"] = { prompt: "hello", max_tokens: 8 };
  const answer = await whole<"generate">("/v1/generate", body);
  const shown = await whole<"requests_retrieve">(`/v1/requests/${answer.request_id}`);
  check(shown.state === "completed" && shown.text === answer.text, "the request object");
  check((answer.tool_calls ?? []).length === 0, "no tool was offered");
}

async function embeddings(): Promise<void> {
  const body: Schemas["EmbeddingBody"] = { model: "mock", input: ["a", "b"] };
  const answer = await whole<"embeddings_create">("/v1/embeddings", body);
  const vectors: (number[] | string)[] = answer.data.map((one) => one.embedding);
  check(vectors.length === 2 && vectors[0].length > 0, "embeddings");
}

async function models(): Promise<void> {
  const listed = await whole<"models_list">("/v1/models");
  check(listed.data.some((model) => model.id === "mock"), "models");
  const missing = await ask("/v1/models/nothing");
  const { error } = (await missing.json()) as Schemas["ErrorAnswer"];
  check(missing.status === 404 && error.code === "model_not_found" && error.param === "model", "an error");
}

for (const one of [chat, responses, message, generate, embeddings, models]) await one();
