// The client does after every refusal, error and Close what the table "passing or final" says.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';

import { CommandError, UnauthorizedError } from '../../wsgate/client/js/wsgate.js';
import { makeRig, settled } from '../support/fake_network.mjs';

const { rows: ROWS } = JSON.parse(readFileSync(new URL('../../protocols/codes/passing.json', import.meta.url), 'utf8'));
const RETRY_MS = 7_000;
const JITTER_MS = 250; // half of the first window
const LIMIT = 5;
const LONG_S = 1e6;

const ofKind = (...kinds) => ROWS.filter((row) => kinds.includes(row.kind));

/** A client with a token of this kind, and how often its function was asked. */
function tokenRig(kind) {
  let asked = 0;
  const sources = { provider: () => `t.${(asked += 1)}`, fixed: 'a.b.c', none: undefined };
  return Object.assign(makeRig({ token: sources[kind] }), { asked: () => asked });
}

/** That the client, which has met a row once, does what the row says; `meet` makes it meet the row again. */
async function follows(rig, action, { code, leastMs = 0, meet = () => {} }) {
  if (action === 'end') {
    assert.equal(rig.client.state, 'closed');
    const { code: closed, willReconnect } = rig.told('close').at(-1);
    assert.deepEqual([closed, willReconnect], [code, false]);
    await assert.rejects(rig.client.connect(), { name: 'ClientClosedError', code });
    assert.equal(rig.told('error').filter(({ error }) => error.name === 'ClientClosedError').length, 1);
    assert.equal(rig.clock.timerCount, 0);
    await rig.clock.advance(600_000);
    assert.equal(rig.sockets.length, 1);
    return;
  }
  assert.equal(rig.client.state, 'waiting');
  assert.equal(rig.told('close').at(-1).willReconnect, true);
  assert.equal(rig.told('close').at(-1).delayMs, leastMs + JITTER_MS);
  const asked = rig.asked();
  for (let count = 2; count <= (action === 'limited' ? LIMIT : 2); count += 1) {
    await rig.clock.advance(rig.told('close').at(-1).delayMs);
    assert.equal(rig.sockets.length, count);
    meet(rig.socket);
  }
  if (action === 'limited') {
    assert.equal(rig.client.state, 'closed');
    assert.equal(rig.told('close').at(-1).code, code);
    assert.equal(rig.asked(), LIMIT);
  } else if (asked > 0) {
    assert.equal(rig.asked(), asked + 1, 'each try has a fresh token');
  }
  rig.client.close();
}

for (const kind of ['provider', 'fixed', 'none']) {
  describe(`with a token: ${kind}`, () => {
    for (const row of ofKind('close')) {
      test(`close ${row.code} ${row.name}`, async () => {
        for (const isCloseLost of [false, true]) {
          if (isCloseLost && row.code < 4000) continue; // there is no bye before these
          const rig = tokenRig(kind);
          const socket = await rig.opens();
          if (row.code >= 4000) {
            const isFinal = row.state === 'final';
            const more = row.retry ? { retry_ms: RETRY_MS } : {};
            socket.says({ op: 'bye', code: row.code, reason: row.name, reconnect: !isFinal, ...more });
          }
          socket.ends(isCloseLost ? 1006 : row.code, row.code >= 4000 ? '' : row.name);
          await follows(rig, row[kind], { code: row.code, leastMs: row.retry ? RETRY_MS : 0 });
        }
      });
    }

    for (const row of ofKind('http', 'answer')) {
      const refuse = (socket, message) => {
        socket.readyState = 3;
        socket.onerror(message ? { message } : {});
        socket.onclose({ code: 1006, reason: '' });
      };

      test(`status ${row.code} ${row.name} where the WebSocket class tells it`, async () => {
        const rig = tokenRig(kind);
        const meet = (socket) => refuse(socket, `Unexpected server response: ${row.code}`);
        meet(await rig.connects());
        await follows(rig, row[kind], { code: row.code, meet: row[kind] === 'limited' ? meet : undefined });
      });

      test(`status ${row.code} ${row.name} in a browser, which does not tell it`, async () => {
        const rig = tokenRig(kind);
        refuse(await rig.connects());
        await follows(rig, 'reconnect', { code: 1006 });
      });
    }

    for (const row of ofKind('lost')) {
      test(`lost: ${row.name}`, async () => {
        const rig = tokenRig(kind);
        (await rig.opens()).ends(1006);
        await follows(rig, row[kind], { code: 1006 });
      });
    }

    for (const row of ofKind('error')) {
      test(`error ${row.code} ${row.name}`, async () => {
        let asked = 0;
        const token = { provider: () => `t.${(asked += 1)}`, fixed: 'a.b.c', none: undefined }[kind];
        const rig = makeRig();
        const socket = await rig.opens({ ping_s: LONG_S });
        const subscription = rig.client.subscribe('news', { token });
        await settled();
        const action = row[kind];
        const tries = { retry: LIMIT + 1, limited: LIMIT }[action] ?? 1;
        const err = { op: 'err', ch: 'news', code: row.code, error: row.name, message: 'm' };
        const refuse = (id) => socket.says({ ...err, id, ...(row.retry ? { retry_ms: RETRY_MS } : {}) });
        for (let count = 1; count <= tries; count += 1) {
          assert.equal(socket.said('sub').length, count);
          if (count <= LIMIT) refuse(count);
          if (row.retry && count < tries) await rig.clock.advance(RETRY_MS);
          if (row.retry && count < tries) assert.equal(socket.said('sub').length, count, 'not before its time');
          if (count < tries) await rig.clock.advance(JITTER_MS * 2 ** (count - 1));
        }
        assert.equal(socket.said('sub').length, tries);
        if (action === 'retry') socket.says({ op: 'subbed', ch: 'news', id: tries });
        if (action === 'retry' || action === 'held') await subscription.ready;
        else await assert.rejects(subscription.ready, { name: 'CommandError', code: row.code, error: row.name });
        const publishing = rig.client.publish('news', 1);
        refuse(tries + 1);
        const error = await publishing.catch((caught) => caught);
        assert.ok(error instanceof CommandError);
        assert.equal(error.isTemporary, row.state === 'passing');
        assert.equal(error.retryMs, row.retry ? RETRY_MS : undefined);
        assert.equal(rig.client.state, 'open', 'the connection stays');
        rig.client.close();
      });
    }
  });
}

describe('what the client finds out by itself', () => {
  const ways = {
    connect_failed: async () => {
      const rig = makeRig({ WebSocket: class { constructor() { throw new Error('no'); } } });
      await rig.connects();
      return rig;
    },
    heartbeat_timeout: async () => {
      const rig = makeRig();
      await rig.opens();
      await rig.clock.advance(35_000);
      return rig;
    },
    token_failed: async () => {
      const rig = makeRig({ token: () => { throw new Error('away'); } });
      await rig.connects();
      return rig;
    },
    unauthorized: async () => {
      const rig = makeRig({ token: () => { throw new UnauthorizedError('logged out'); } });
      await rig.connects();
      return rig;
    },
  };
  const rows = ofKind('client').filter(({ clients }) => clients.includes('javascript'));

  test('every row has its way here', () => {
    assert.deepEqual(rows.map(({ name }) => name).sort(), Object.keys(ways).sort());
  });

  for (const row of rows) {
    test(row.name, async () => {
      const rig = await ways[row.name]();
      assert.equal(rig.client.state, row.state === 'passing' ? 'waiting' : 'closed');
      const { code, reason, willReconnect } = rig.told('close')[0];
      assert.equal(willReconnect, row.state === 'passing');
      if (row.code) assert.deepEqual([code, reason], [row.code, row.name]);
      assert.ok(rig.told('error').length > 0, 'the cause is told');
      rig.client.close();
    });
  }
});
