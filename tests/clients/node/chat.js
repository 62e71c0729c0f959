// Calls the server with OpenAI's Node SDK and prints what it decoded: `node chat.js BASE_URL`.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "unused", maxRetries: 0 });
const request = { model: "", messages: [{ role: "user", content: "Hello!" }], temperature: 0, max_tokens: 16 };

const whole = await client.chat.completions.create(request);

const { data: stream, response } = await client.chat.completions
  .create({ ...request, stream: true, stream_options: { include_usage: true } })
  .withResponse();
let text = "";
let usage = null;
let finishReason = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  finishReason = chunk.choices[0]?.finish_reason ?? finishReason;
  usage = chunk.usage ?? usage;
}

async function failure(fields) {
  try {
    await client.chat.completions.create({ ...request, ...fields });
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, message: error.message, requestId: error.requestID };
  }
}

// Leaves after the first token, as a closed browser tab does.
const left = await client.chat.completions.create({ ...request, max_tokens: 400, stream: true });
for await (const _ of left) break;

const models = [];
for await (const model of client.models.list()) models.push(model.id);

console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    role: whole.choices[0].message.role,
    total: whole.usage.total_tokens,
    text,
    usage,
    finishReason,
    session: response.headers.get("x-session-id"),
    absent: await failure({ model: "absent-model" }),
    outOfRange: await failure({ temperature: 9 }),
    malformed: await failure({ max_tokens: "many" }),
    afterLeaving: (await client.chat.completions.create(request)).choices[0].message.content,
    models,
  }),
);
