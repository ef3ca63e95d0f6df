// The loop of every Node client: reads one step a line, does it, says in one line how it ended.
//
// Usage of a client: node CLIENT.mjs TARGET   TARGET is the path of a UNIX socket or an http:// base address. Each line of
// standard input is a step's name, a tab and the text to ask; the answer is `@ ok`, `@ n/a REASON` or `@ failed REASON`.
// A step is a function of the text, or a text: the reason why this client has no such thing.
import assert from 'node:assert/strict';
import readline from 'node:readline';

export const TARGET = process.argv[2];

export const PICTURE =
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
export const GAUGE = { type: 'object', properties: { gauge: { type: 'integer' } }, required: ['gauge'] };
export const VERDICT = {
  type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'], additionalProperties: false,
};

// What a promise or a function was refused with; fails if it was not.
export async function refusal(work) {
  let answer;
  try {
    answer = await work();
  } catch (error) {
    return error;
  }
  assert.fail(`it came as an answer: ${JSON.stringify(answer)}`);
}

async function one(steps, name, text) {
  const step = steps[name] ?? 'the client\'s program has no such step';
  if (typeof step === 'string') return `n/a ${step}`;
  try {
    return `ok ${(await step(text)) ?? ''}`;
  } catch (error) {
    console.error(error);
    return `failed ${error.name}: ${String(error.message).replaceAll('\n', ' ').slice(0, 300)}`;
  }
}

export async function main(steps) {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [name, text] = line.split('\t');
    console.log('@', await one(steps, name, text));
  }
  // Connections that are kept for a next request must not keep the program.
  process.exit(0);
}
