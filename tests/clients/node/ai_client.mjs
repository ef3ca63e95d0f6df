// What an unmodified Vercel ai with @ai-sdk/openai-compatible must be able to do through holdfast. Usage: see steps.mjs.
import assert from 'node:assert/strict';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { Output, generateText, jsonSchema, streamText, tool } from 'ai';
import { GAUGE, PICTURE, TARGET, VERDICT, main, refusal } from './steps.mjs';

function model(headers) {
  const options = { name: 'holdfast', baseURL: `${TARGET}/v1`, apiKey: 'anything', headers };
  return createOpenAICompatible({ ...options, supportsStructuredOutputs: true })('gpt-4o');
}

const queue = () => model({ 'X-Holdfast-Offline': 'queue', Prefer: 'wait=1' });
const say = (prompt, more) => generateText({ model: model(), prompt, ...more });

// Errors are parts of a stream there.
async function pieces(prompt) {
  const seen = { text: [], errors: [] };
  for await (const part of streamText({ model: model(), prompt, onError() {} }).fullStream) {
    if (part.type === 'text-delta') seen.text.push(part.text);
    if (part.type === 'error') seen.errors.push(part.error);
  }
  return seen;
}

main({
  async plain(text) {
    const answer = await say(text);
    assert.equal(answer.text, `uplink answer to: ${text}`);
    assert(answer.usage.totalTokens > 0);
  },
  async stream(text) {
    const seen = await pieces(text);
    assert.deepEqual([seen.text.join(''), seen.errors], [`uplink answer to: ${text}`, []]);
    assert(seen.text.length > 2);
  },
  async tools(text) {
    const read_gauge = tool({ description: 'Reads one gauge.', inputSchema: jsonSchema(GAUGE) });
    const call = (await say(text, { tools: { read_gauge } })).toolCalls[0];
    assert.deepEqual([call.toolName, call.input], ['read_gauge', { gauge: 1 }]);
  },
  async schema(text) {
    const answer = await say(text, { output: Output.object({ schema: jsonSchema(VERDICT) }) });
    assert.deepEqual(answer.output, { ok: true });
  },
  async picture(text) {
    const file = { type: 'file', data: Buffer.from(PICTURE, 'base64'), mediaType: 'image/png' };
    const messages = [{ role: 'user', content: [{ type: 'text', text }, file] }];
    assert.equal((await generateText({ model: model(), messages })).text, `uplink answer to: ${text} (1 images)`);
  },
  async refused(text) {
    const error = await refusal(() => say(text));
    assert.equal(error.statusCode, 400);
    assert(error.responseBody.includes('simulated_mistake'), error);
  },
  async failing(text) {
    const seen = await pieces(text);
    assert.deepEqual([seen.text.join(''), seen.errors], [`local answer to: ${text}`, []]);
  },
  async cut(text) {
    const seen = await pieces(text);
    assert(seen.text.join('').startsWith('uplink answer') && seen.text.join('') !== `uplink answer to: ${text}`);
    assert.equal(seen.errors.length, 1);
    return 'the stream has an `error` part after the pieces that came';
  },
  async limited(text) {
    const answer = await generateText({ model: model({ 'X-Holdfast-Offline': 'fail' }), prompt: text });
    assert.equal(answer.text, `uplink answer to: ${text}`);
    return 'waits as `Retry-After` says, then asks once more';
  },
  async offline(text) {
    assert.equal((await say(text)).text, `local answer to: ${text}`);
  },
  async queued(text) {
    const raised = await refusal(() => generateText({ model: queue(), prompt: text }));
    assert.equal(raised.errors.length, 3);
    const error = raised.lastError;
    assert.equal(error.statusCode, 503);
    assert(error.responseBody.includes('request_queued'), error);
    return 'repeats it by itself, whatever `x-should-retry` says: each time it is the stored one';
  },
  async later(text) {
    assert.equal((await generateText({ model: queue(), prompt: text })).text, `uplink answer to: ${text}`);
    return 'has no fetch by id: by asking the same again, which finds the stored request';
  },
});
