// What an unmodified openai-node must be able to do through holdfast. Usage: see steps.mjs.
import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { Agent } from 'undici';
import { GAUGE, PICTURE, TARGET, VERDICT, main, refusal } from './steps.mjs';

const waiting = {};

function client(policy) {
  const options = { apiKey: 'anything', timeout: 60_000 };
  if (policy) options.defaultHeaders = { 'X-Holdfast-Offline': policy };
  if (TARGET.startsWith('http')) return new OpenAI({ baseURL: `${TARGET}/v1`, ...options });
  const dispatcher = new Agent({ connect: { socketPath: TARGET } });
  return new OpenAI({ baseURL: 'http://hf/v1', fetchOptions: { dispatcher }, ...options });
}

const say = (content, more, asked = client(), options = {}) =>
  asked.chat.completions.create({ model: 'gpt-4o', messages: [{ role: 'user', content }], ...more }, options);
const content = (answer) => answer.choices[0].message.content;

async function pieces(text, seen = []) {
  for await (const chunk of await say(text, { stream: true })) seen.push(chunk.choices[0]?.delta?.content ?? '');
  return seen;
}

main({
  async plain(text) {
    const answer = await say(text);
    assert.equal(content(answer), `uplink answer to: ${text}`);
    assert(answer.usage.total_tokens > 0);
  },
  async stream(text) {
    const seen = await pieces(text);
    assert.equal(seen.join(''), `uplink answer to: ${text}`);
    assert(seen.length > 2);
  },
  async tools(text) {
    const tools = [{ type: 'function', function: { name: 'read_gauge', parameters: GAUGE } }];
    const call = (await say(text, { tools })).choices[0].message.tool_calls[0].function;
    assert.deepEqual([call.name, JSON.parse(call.arguments)], ['read_gauge', { gauge: 1 }]);
  },
  async schema(text) {
    const json_schema = { name: 'verdict', strict: true, schema: VERDICT };
    const answer = await say(text, { response_format: { type: 'json_schema', json_schema } });
    assert.deepEqual(JSON.parse(content(answer)), { ok: true });
  },
  async picture(text) {
    const url = `data:image/png;base64,${PICTURE}`;
    const answer = await say([{ type: 'text', text }, { type: 'image_url', image_url: { url } }]);
    assert.equal(content(answer), `uplink answer to: ${text} (1 images)`);
  },
  async refused(text) {
    const error = await refusal(() => say(text));
    assert(error instanceof OpenAI.BadRequestError, error);
    assert.deepEqual([error.status, error.code], [400, 'simulated_mistake']);
  },
  async failing(text) {
    assert.equal((await pieces(text)).join(''), `local answer to: ${text}`);
  },
  async cut(text) {
    const seen = [];
    const error = await refusal(() => pieces(text, seen));
    assert(error instanceof OpenAI.APIError, error);
    assert(seen.join('').startsWith('uplink answer') && seen.join('') !== `uplink answer to: ${text}`, seen);
    return `raises ${error.constructor.name} after the pieces that came`;
  },
  async limited(text) {
    assert.equal(content(await say(text, {}, client('fail'))), `uplink answer to: ${text}`);
    return 'waits as `Retry-After` says, then asks once more';
  },
  async offline(text) {
    const { data, response } = await client().chat.completions
      .create({ model: 'gpt-4o', messages: [{ role: 'user', content: text }] }).withResponse();
    assert.equal(content(data), `local answer to: ${text}`);
    assert.equal(response.headers.get('x-holdfast-state'), 'queued');
  },
  async queued(text) {
    // Only a request's own time-out is told to the server, which then answers before it.
    const error = await refusal(() => say(text, {}, client('queue'), { timeout: 2_000 }));
    assert.deepEqual([error.status, error.code], [503, 'request_queued']);
    waiting[text] = error.headers.get('x-holdfast-id');
    return 'with a time-out of the request\'s own; the client\'s is not told to the server, which then holds for 25 s';
  },
  async later(text) {
    assert.equal(content(await client().chat.completions.retrieve(waiting[text])), `uplink answer to: ${text}`);
    return 'by its id';
  },
});
