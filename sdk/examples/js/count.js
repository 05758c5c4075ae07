// Counts what it is told, by name: a plugin in JavaScript. What a handler throws, as an error of the
// ABI, is its answer; anything else that is thrown is a trap.
import { get, set } from 'wormholes:plugin/state@0.1.0';

const bytes = (value) => new TextEncoder().encode(JSON.stringify(value));
const value = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

const key = (name) => new TextEncoder().encode(`count/${name}`);

const counted = (name) => {
  const row = get(key(name));
  return row ? value(row) : 0;
};

const refuse = (code, message) => {
  throw { code, message };
};

export const lifecycle = {
  init() {},
  // 'done', or 'again' to be called once more.
  migrate: (_event, from) => refuse('failed', `rows of schema ${from} cannot be read`),
  health: () => 'well',
};

export const onRequest = {
  handle(_event, request) {
    const { name } = value(request.body);
    const count = counted(name) + 1;
    set(key(name), bytes(count));
    // The row is undone.
    if (name === 'nobody') refuse('invalid', 'nobody is not counted');
    return { tag: 'done', val: bytes(count) };
  },
  canceled() {},
};

export const onQuery = {
  query: (_event, _caller, _command, body) => bytes(counted(value(body).name)),
};
