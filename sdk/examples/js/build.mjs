// Makes count.wasm of count.js: `node build.mjs [FOLDER OF THE ABI]`.
import { writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { componentize } from '@bytecodealliance/componentize-js';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

const { component } = await componentize({
  sourcePath: here('count.js'),
  witPath: process.argv[2] ?? here('../../wit/0.1.0'),
  worldName: 'command',
  // What of WASI a node does not give.
  disableFeatures: ['stdio', 'random', 'clocks', 'http', 'fetch-event'],
});
await writeFile(here('count.wasm'), component);
