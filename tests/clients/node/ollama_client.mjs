// What an unmodified ollama (npm) must be able to do through holdfast. Usage: see steps.mjs.
import assert from 'node:assert/strict';
import { Ollama } from 'ollama';
import { GAUGE, PICTURE, TARGET, VERDICT, main, refusal } from './steps.mjs';

const LOCAL = 'it asks the local Ollama, not an uplink: nothing of it is stored';
const say = (content, more) =>
  new Ollama({ host: TARGET }).chat({ model: 'llama3.2', messages: [{ role: 'user', content }], ...more });

async function pieces(text, seen = []) {
  for await (const part of await say(text, { stream: true })) seen.push(part.message.content);
  return seen;
}

async function plain(text) {
  const answer = await say(text);
  assert.equal(answer.message.content, `local answer to: ${text}`);
  assert(answer.done && answer.eval_count > 0);
}

main({
  plain,
  async stream(text) {
    const seen = await pieces(text);
    assert.equal(seen.join(''), `local answer to: ${text}`);
    assert(seen.length > 2);
  },
  async tools(text) {
    const tools = [{ type: 'function', function: { name: 'read_gauge', description: 'Reads one.', parameters: GAUGE } }];
    const call = (await say(text, { tools })).message.tool_calls[0].function;
    assert.deepEqual([call.name, call.arguments], ['read_gauge', { gauge: 1 }]);
  },
  async schema(text) {
    assert.equal((await say(text, { format: VERDICT })).message.content, '{"ok":true}');
  },
  async picture(text) {
    const messages = [{ role: 'user', content: text, images: [Buffer.from(PICTURE, 'base64')] }];
    assert.equal((await say(text, { model: 'llava', messages })).message.content, `local answer to: ${text} (1 images)`);
  },
  async refused(text) {
    const error = await refusal(() => say(text, { model: 'no-such' }));
    assert.deepEqual([error.status_code, error.message], [404, 'model "no-such" not found, try pulling it first']);
  },
  async failing(text) {
    const error = await refusal(() => pieces(text));
    assert.deepEqual([error.status_code, error.message], [500, 'simulated error 500']);
    return 'the local Ollama\'s own 500 is the client\'s error: nothing stands behind it';
  },
  async cut(text) {
    const seen = [];
    const error = await refusal(() => pieces(text, seen));
    assert.notEqual(seen.join(''), `local answer to: ${text}`);
    return `raises ${error.constructor.name} after the pieces that came`;
  },
  limited: 'an Ollama has no rate limit',
  offline: plain,
  queued: LOCAL,
  later: LOCAL,
});
