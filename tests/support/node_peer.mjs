/**
 * Evaluate expressions: each line of standard input is an expression as a JSON string, and each line of standard
 * output is its value. `wsgate` is the module of the client and `WebSocket` the class of the package `ws`.
 *
 * Usage: node node_peer.mjs FOLDER_WITH_MODULES
 */
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

import * as wsgate from '../../wsgate/client/js/wsgate.js';

const { WebSocket } = createRequire(`${process.argv[2]}/`)('ws');
Object.assign(globalThis, { wsgate, WebSocket });

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = { value: await (0, eval)(JSON.parse(line)) };
  } catch (error) {
    answer = { error: String(error?.stack ?? error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit(0); // clients may still be connected
