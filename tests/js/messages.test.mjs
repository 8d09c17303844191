// Everything that a server says, as protocols/client/v1/messages.json has it, and what no server should say.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import * as module from '../../wsgate/client/js/wsgate.js';
import { makeRig, settled } from '../support/fake_network.mjs';

const { messages } = JSON.parse(readFileSync(new URL('../../protocols/client/v1/messages.json', import.meta.url)));
const ofServer = messages.filter(({ from, json }) => from === 'server' && json);

test('there are vectors', () => {
  assert.ok(ofServer.length >= 30);
});

for (const { name, json } of ofServer) {
  test(`accepted: ${name}`, async () => {
    const states = {
      'never open': async (rig) => { await rig.connects(); },
      open: async (rig) => { await rig.opens(); },
      'with something to answer': async (rig) => {
        await rig.opens();
        rig.client.subscribe('chat:42');
        rig.client.inbox();
        for (let turn = 0; turn < 7; turn += 1) rig.client.publish('chat:42', turn);
      },
    };
    for (const [state, reach] of Object.entries(states)) {
      const rig = makeRig({ token: () => 'a.b.c' });
      await reach(rig);
      rig.socket.saysText(json);
      rig.socket.saysText(json);
      await settled();
      const errors = rig.told('error').map(({ error }) => error);
      const isTold = name.startsWith('err') || name.includes('unasked');
      assert.ok(errors.every((error) => isTold && error instanceof module.CommandError), `${state}: ${errors}`);
      assert.notEqual(rig.client.state, 'waiting');
      rig.client.close();
      assert.equal(rig.clock.timerCount, 0);
    }
  });
}

test('who comes and goes is told', async () => {
  const rig = makeRig();
  const socket = await rig.opens();
  socket.says({ op: 'join', ch: 'chat:42', user: '42', conn: '00' }, { op: 'leave', ch: 'chat:42', conn: '00' });
  assert.deepEqual(rig.told('join'), [{ channel: 'chat:42', user: '42', conn: '00' }]);
  assert.deepEqual(rig.told('leave'), [{ channel: 'chat:42', user: undefined, conn: '00' }]);
  rig.client.close();
});

test('nonsense is told as an error, and what is new is not', async () => {
  const rig = makeRig();
  const subscription = rig.client.subscribe('news');
  const socket = await rig.opens();
  subscription.onPublication = () => {};
  const nonsense = ['', '{', 'null', new ArrayBuffer(2), '{"op":"msg","ch":"news","b64":"*"}'];
  for (const text of nonsense) socket.saysText(text);
  assert.equal(rig.told('error').length, nonsense.length);
  for (const text of ['1', '[]', '{}', '{"op":"constructor"}', '{"op":"later"}', '{"op":null}']) socket.saysText(text);
  for (const op of ['subbed', 'unsubbed', 'msg', 'gap', 'ok', 'pong', 'refresh']) socket.says({ op });
  assert.equal(rig.told('error').length, nonsense.length);
  assert.equal(rig.client.state, 'open');
  rig.client.close();
});

test('what the module exports', () => {
  const errors = [
    'ClientClosedError', 'CommandError', 'CommandTimeoutError', 'ConnectionLostError', 'UnauthorizedError', 'WsgateError',
  ];
  assert.deepEqual(Object.keys(module).sort(), ['Client', ...errors].sort());
  const members = ['close', 'connect', 'constructor', 'disconnect', 'inbox', 'publish', 'send', 'state', 'subscribe'];
  assert.deepEqual(Object.getOwnPropertyNames(module.Client.prototype).sort(), members);
  for (const name of errors) assert.ok(module[name].prototype instanceof Error, name);
});
