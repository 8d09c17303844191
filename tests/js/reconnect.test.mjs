// Coming back, and not: close codes, back-off, tokens, the watchdog, close() in every state.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import {
  Client, ClientClosedError, ConnectionLostError, UnauthorizedError, WsgateError,
} from '../../wsgate/client/js/wsgate.js';
import { FakeClock, fakeNetwork, makeRig, seededRandom, settled } from '../support/fake_network.mjs';

const LONG_S = 1e6; // a server that is not asked for a pong here
const CLIENTS = 20_000;
const BUCKET_MS = 100;
const COMES_BACK = [1000, 1001, 1004, 1005, 1006, 1011, 1012, 1013, 1014, 1015, 3000, 3999];
const COMES_BACK_RANGE = [4000, 4499];
const STAYS_AWAY = [1002, 1003, 1007, 1008, 1009, 1010];
const STAYS_AWAY_RANGE = [4500, 4999];

const range = ([first, last]) => Array.from({ length: last - first + 1 }, (_, index) => first + index);

describe('close codes', () => {
  test('who comes back does so by itself', async () => {
    for (const code of [...COMES_BACK, ...range(COMES_BACK_RANGE)]) {
      const rig = makeRig({ token: () => 'a.b.c' });
      (await rig.opens()).ends(code, 'why');
      assert.equal(rig.client.state, 'waiting', `${code}`);
      assert.deepEqual(rig.told('close'), [{ code, reason: 'why', willReconnect: true, delayMs: 250 }]);
      await rig.clock.advance(250);
      assert.equal(rig.sockets.length, 2, `${code}`);
      rig.client.close();
    }
  });

  test('who is told to stay away does', async () => {
    for (const code of [...STAYS_AWAY, ...range(STAYS_AWAY_RANGE)]) {
      const rig = makeRig();
      (await rig.opens()).ends(code, 'why');
      assert.equal(rig.client.state, 'closed', `${code}`);
      assert.deepEqual(rig.told('close'), [{ code, reason: 'why', willReconnect: false, delayMs: 0 }]);
      assert.equal(rig.clock.timerCount, 0);
      await rig.clock.advance(600_000);
      assert.equal(rig.sockets.length, 1, `${code}`);
    }
  });

  test('a Close for good ends iterators, commands and connect() with its code', async () => {
    const rig = makeRig();
    const opened = rig.client.connect();
    await settled();
    const next = rig.client.subscribe('news')[Symbol.asyncIterator]().next();
    const publishing = rig.client.publish('news', 1);
    rig.socket.says({ op: 'bye', code: 4501, reason: 'invalid_token', reconnect: false });
    rig.socket.ends(4501);
    const expected = { name: 'ClientClosedError', code: 4501, reason: 'invalid_token' };
    for (const promise of [opened, next, publishing, rig.client.send(1), rig.client.connect()]) {
      await assert.rejects(promise, expected);
    }
    assert.throws(() => rig.client.subscribe('other'), expected);
  });

  test('connect() of a client that reconnects resolves with the next welcome and not before', async () => {
    const rig = makeRig({ token: () => 'a.b.c' });
    await rig.opens();
    const resolved = [];
    const isOpen = (name) => rig.client.connect().then(() => resolved.push(name));
    isOpen('open');
    await settled();
    assert.deepEqual(resolved.splice(0), ['open']);
    for (let turn = 1; turn <= 3; turn += 1) {
      rig.socket.ends(1006);
      isOpen('waiting');
      await rig.clock.advance(rig.told('close').at(-1).delayMs);
      isOpen('connecting');
      await settled();
      assert.deepEqual([rig.client.state, resolved], ['connecting', []]);
      if (turn === 2) continue; // an attempt fails meanwhile
      rig.socket.welcomes();
      isOpen('open');
      await settled();
      const expected = turn === 1 ? ['connecting', 'open', 'waiting'] : ['connecting', 'connecting', 'open', 'waiting', 'waiting'];
      assert.deepEqual(resolved.splice(0).sort(), expected);
    }
    rig.socket.ends(1006);
    const pending = rig.client.connect();
    rig.client.close();
    await assert.rejects(pending, { name: 'ClientClosedError', code: 1000 });
  });

  test('connect() in a listener of the lost connection waits for the next welcome', async () => {
    const rig = makeRig();
    await rig.opens();
    let isOpen = false;
    rig.client.addEventListener('close', () => rig.client.connect().then(() => { isOpen = true; }), { once: true });
    rig.socket.ends(1006);
    await settled();
    assert.equal(isOpen, false);
    await rig.reopens();
    await settled();
    assert.equal(isOpen, true);
    rig.client.close();
  });

  test('a bye whose Close was lost counts as its Close', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    socket.says({ op: 'bye', code: 4501, reason: 'invalid_token', reconnect: false });
    socket.ends(1006);
    assert.equal(rig.client.state, 'closed');
  });

  test('a refused handshake, which shows as 1006, is tried again', async () => {
    const rig = makeRig();
    (await rig.connects()).ends(1006);
    assert.equal(rig.client.state, 'waiting');
    assert.equal(rig.told('error').length, 1);
    await rig.clock.advance(250);
    rig.socket.welcomes();
    assert.equal(rig.client.state, 'open');
  });
});

describe('back-off', () => {
  test('it doubles up to its ceiling, and begins anew after a connection that lasted', async () => {
    const rig = makeRig({ random: () => 1 });
    const delaysMs = () => rig.told('close').map(({ delayMs }) => delayMs);
    await rig.connects();
    for (let turn = 0; turn < 8; turn += 1) {
      rig.socket.ends(1006);
      await rig.clock.advance(delaysMs().at(-1));
    }
    assert.deepEqual(delaysMs(), [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    rig.socket.welcomes();
    rig.socket.ends(4013);
    assert.equal(delaysMs().at(-1), 30_000, 'welcome and cut at once is no success');
    await rig.clock.advance(30_000);
    rig.socket.welcomes();
    await rig.clock.advance(5_000);
    rig.socket.ends(1006);
    assert.equal(delaysMs().at(-1), 500);
    rig.client.close();
  });

  test('its numbers can be set', async () => {
    const rig = makeRig({ backoff: { firstMs: 10, mostMs: 15 }, random: () => 1 });
    await rig.connects();
    for (let turn = 0; turn < 3; turn += 1) {
      rig.socket.ends(1006);
      await rig.clock.advance(15);
    }
    assert.deepEqual(rig.told('close').map(({ delayMs }) => delayMs), [10, 15, 15]);
    rig.client.close();
  });

  test('20,000 clients of a gateway that restarts come back spread evenly', async () => {
    const { clock, sockets, arrivalsMs } = await crowd();
    const retryMs = 2000;
    const sinceMs = clock.nowMs;
    for (const socket of sockets.splice(0)) {
      socket.says({ op: 'bye', code: 4012, reason: 'drain', reconnect: true, retry_ms: retryMs });
      socket.ends(4012);
    }
    let [fromMs, ceilingMs] = [retryMs, 500];
    for (let attempt = 0; attempt < 4; attempt += 1) {
      arrivalsMs.length = 0;
      await clock.advance(sinceMs + fromMs + ceilingMs - clock.nowMs);
      assert.equal(arrivalsMs.length, CLIENTS);
      assertEven(arrivalsMs.map((atMs) => atMs - sinceMs - fromMs), ceilingMs);
      fromMs += ceilingMs;
      // All at one moment again, at the end of the window: what one attempt adds is looked at alone.
      for (const socket of sockets.splice(0)) socket.ends(1006);
      ceilingMs *= 2;
    }
  });

  test('the check of evenness can fail', () => {
    assert.throws(() => assertEven(Array(CLIENTS).fill(120), 1000), /bucket/);
  });
});

/** Clients that are all connected to one server. */
async function crowd() {
  const clock = new FakeClock();
  const random = seededRandom(42);
  const { sockets, FakeSocket } = fakeNetwork();
  const arrivalsMs = [];
  class CountedSocket extends FakeSocket {
    constructor(...parameters) {
      super(...parameters);
      arrivalsMs.push(clock.nowMs);
    }
  }
  for (let number = 0; number < CLIENTS; number += 1) {
    const { now, setTimeout, clearTimeout } = clock;
    const options = { WebSocket: CountedSocket, random, now, setTimeout, clearTimeout, connectTimeoutMs: 1e9 };
    new Client('wss://push.example/ws', options).connect();
  }
  await settled();
  for (const socket of sockets) socket.welcomes({ ping_s: LONG_S });
  return { clock, sockets, arrivalsMs };
}

/** No bucket of arrivals holds more than three times the mean, and none is outside the window. */
function assertEven(delaysMs, ceilingMs) {
  const buckets = Array(ceilingMs / BUCKET_MS).fill(0);
  for (const delayMs of delaysMs) buckets[Math.floor(delayMs / BUCKET_MS)] += 1;
  const most = Math.max(...buckets);
  assert.ok(most <= (3 * delaysMs.length) / buckets.length, `${most} in one bucket of ${buckets}`);
}

describe('what the server asks for', () => {
  test('retry_ms of the last bye is waited for, and jitter on top', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    socket.says({ op: 'bye', code: 4012, reason: 'drain', reconnect: true, retry_ms: 60_000 });
    socket.ends(4012);
    assert.deepEqual(rig.told('close'), [
      { code: 4012, reason: 'drain', willReconnect: true, delayMs: 60_000 + 250 },
    ]);
    await rig.clock.advance(60_249);
    assert.equal(rig.sockets.length, 1);
    await rig.clock.advance(1);
    assert.equal(rig.sockets.length, 2);
    rig.socket.ends(1006);
    assert.equal(rig.told('close').at(-1).delayMs, 500, 'it counts for one wait only');
    rig.client.close();
  });

  test('no number of the server breaks the timers', async () => {
    for (const number of [-1, null, 'soon', 1e300, {}]) {
      const rig = makeRig({ token: () => 'a.b.c' });
      const socket = await rig.opens({ ping_s: number, expires_s: number });
      socket.says({ op: 'refresh', within_s: number });
      socket.says({ op: 'bye', code: 4012, retry_ms: number });
      socket.ends(4012);
      assert.equal(rig.client.state, 'waiting');
      rig.client.close();
    }
  });

  test('an absurd ping_s is an hour, so that a server that vanished is noticed', async () => {
    const rig = makeRig();
    await rig.opens({ ping_s: 2 ** 53 });
    await rig.clock.advance(7_200_000 + 60_000);
    assert.equal(rig.client.state, 'waiting');
    rig.client.close();
  });

  test('an absurd retry_ms of a bye or an err is an hour', async () => {
    for (const number of [3_600_001, 2 ** 53, 1e300]) {
      const rig = makeRig({ token: () => 'a.b.c' });
      rig.client.subscribe('news');
      const socket = await rig.opens({ ping_s: 1e6 });
      socket.says({ op: 'err', id: 1, ch: 'news', code: 503, error: 'unavailable', retry_ms: number });
      assert.equal(rig.told('error')[0].error.retryMs, 3_600_000);
      await rig.clock.advance(3_600_000 + 249);
      assert.equal(socket.said('sub').length, 1);
      await rig.clock.advance(1);
      assert.equal(socket.said('sub').length, 2);
      socket.says({ op: 'bye', code: 4012, retry_ms: number });
      socket.ends(4012);
      assert.equal(rig.told('close')[0].delayMs, 3_600_000 + 250);
      rig.client.close();
    }
  });
});

describe('tokens', () => {
  test('a token rides as a subprotocol, and none does when there is none', async () => {
    for (const [token, protocols] of [
      ['a.b-c.d_e', ['wsgate.v1.json', 'wsgate.bearer.a.b-c.d_e']],
      [() => 'a.b.c', ['wsgate.v1.json', 'wsgate.bearer.a.b.c']],
      [async () => 'a.b.c', ['wsgate.v1.json', 'wsgate.bearer.a.b.c']],
      [undefined, ['wsgate.v1.json']],
      [() => null, ['wsgate.v1.json']],
      ['', ['wsgate.v1.json']],
    ]) {
      const rig = makeRig({ token });
      assert.deepEqual((await rig.connects()).protocols, protocols);
      rig.client.close();
    }
  });

  test('each try has a fresh token', async () => {
    let number = 0;
    const rig = makeRig({ token: () => `t.${(number += 1)}` });
    (await rig.opens()).ends(4001);
    await rig.clock.advance(250);
    assert.deepEqual(rig.sockets.map(({ protocols }) => protocols[1]), ['wsgate.bearer.t.1', 'wsgate.bearer.t.2']);
    rig.client.close();
  });

  test('a function that fails, in any way, is a failed try', async () => {
    const fault = new Error('the token server is away');
    for (const token of [() => { throw fault; }, () => Promise.reject(fault), () => 7, () => 'not a\ttoken']) {
      const rig = makeRig({ token });
      await rig.connects();
      assert.equal(rig.sockets.length, 0);
      assert.equal(rig.client.state, 'waiting');
      assert.equal(rig.told('error').length, 1);
      assert.ok(!String(rig.told('error')[0].error).includes('not a\ttoken'), 'a token is a secret');
      await rig.clock.advance(750);
      assert.deepEqual(rig.told('close').map(({ delayMs }) => delayMs), [250, 500, 1000]);
      rig.client.close();
    }
  });

  test('a token that cannot change ends the client when it has expired', async () => {
    for (const reason of ['token_expired', '', 'why']) {
      const rig = makeRig({ token: 'a.b.c' });
      const socket = await rig.opens();
      socket.says({ op: 'bye', code: 4001, reason, reconnect: true, retry_ms: 2000 });
      socket.ends(4001);
      assert.equal(rig.client.state, 'closed', reason);
      await assert.rejects(rig.client.connect(), { code: 4001, message: /the token of this client cannot change/ });
      assert.equal(rig.told('error').length, 1);
    }
    for (const reason of ['key_awaited', 'token_not_yet_valid']) {
      const rig = makeRig({ token: 'a.b.c' });
      (await rig.opens()).ends(4001, reason);
      assert.equal(rig.client.state, 'waiting', reason);
      rig.client.close();
    }
  });

  test('a token in the address cannot change either', async () => {
    const { sockets, FakeSocket: WebSocket } = fakeNetwork();
    const client = new Client('ws://a.example/ws?token=a.b.c', { WebSocket });
    client.connect().catch(() => {});
    await settled();
    sockets[0].welcomes();
    sockets[0].ends(4001, 'token_expired');
    assert.equal(client.state, 'closed');
  });

  test('a text that is no token ends the client at once, and is not shown', async () => {
    const rig = makeRig({ token: 'two words' });
    await assert.rejects(rig.client.connect(), { code: 401, message: /not a JWT/ });
    assert.equal(rig.sockets.length, 0);
    assert.ok(!String(rig.told('error')[0].error).includes('two words'));
  });

  test('a missing token is an error as soon as the server says so', async () => {
    const rig = makeRig();
    const opened = rig.client.connect();
    await settled();
    rig.socket.readyState = 1;
    rig.socket.onopen({});
    await rig.clock.advance(1_000);
    assert.deepEqual(rig.socket.sent, [{ op: 'unsub', ch: 'probe', id: 0 }]);
    rig.socket.says({ op: 'err', id: 0, code: 401, error: 'unauthorized', message: 'm' });
    await assert.rejects(opened, { code: 401, message: /requires a token, and this client has none/ });
    assert.equal(rig.told('error').length, 1);
    assert.equal(rig.clock.timerCount, 0);

    const late = makeRig();
    (await late.connects()).ends(4002, 'auth_timeout');
    assert.equal(late.client.state, 'closed');
    assert.match(late.told('error').at(-1).error.message, /requires a token, and this client has none/);
  });

  test('who is welcome in time, or has a token, is not asked for', async () => {
    for (const token of [undefined, 'a.b.c', () => 'a.b.c', () => null]) {
      const rig = makeRig({ token });
      const socket = await rig.connects();
      socket.readyState = 1;
      socket.onopen({});
      await rig.clock.advance(token === undefined ? 999 : 10_000);
      socket.welcomes();
      await rig.clock.advance(10_000);
      assert.deepEqual(socket.sent, []);
      rig.client.close();
    }
  });

  test('a function that says there will be no token ends the client with its message', async () => {
    for (const fault of [new UnauthorizedError('the user has logged out'), new UnauthorizedError()]) {
      const rig = makeRig({ token: async () => { throw fault; } });
      await assert.rejects(rig.client.connect(), { name: 'ClientClosedError', code: 401, reason: 'unauthorized' });
      assert.ok(rig.told('error')[0].error.message.includes(fault.message));
      assert.equal(rig.sockets.length, 0);
    }
  });

  test('a status that the WebSocket class tells is obeyed', async () => {
    const refuse = (socket, status) => {
      socket.readyState = 3;
      socket.onerror({ message: `Unexpected server response: ${status}` });
      socket.onclose({ code: 1006, reason: '' });
    };
    for (const status of [400, 404, 405, 426, 431, 501]) {
      const rig = makeRig({ token: () => 'a.b.c' });
      refuse(await rig.connects(), status);
      assert.equal(rig.client.state, 'closed', `${status}`);
      assert.deepEqual(rig.told('close'), [{ code: status, reason: 'refused', willReconnect: false, delayMs: 0 }]);
    }
    for (const status of [408, 425, 429, 500, 502, 503, 504]) {
      const rig = makeRig({ token: 'a.b.c' });
      refuse(await rig.connects(), status);
      assert.equal(rig.client.state, 'waiting', `${status}`);
      rig.client.close();
    }
    for (const [token, status, tries] of [
      ['a.b.c', 401, 1], [undefined, 401, 1], [() => 'a.b.c', 401, 5],
      ['a.b.c', 403, 1], [undefined, 403, 1], [() => 'a.b.c', 403, 5],
    ]) {
      const rig = makeRig({ token });
      await rig.connects();
      for (let turn = 1; turn <= tries; turn += 1) {
        assert.notEqual(rig.client.state, 'closed');
        refuse(rig.socket, status);
        await rig.clock.advance(rig.told('close').at(-1).delayMs);
      }
      assert.equal(rig.client.state, 'closed');
      assert.equal(rig.sockets.length, tries);
    }
  });

  test('a function that hangs is a failed try, and what it says later is not heard', async () => {
    const answers = [];
    const rig = makeRig({ token: () => new Promise((...settle) => answers.push(settle)) });
    await rig.connects();
    await rig.clock.advance(15_000);
    assert.equal(rig.client.state, 'waiting');
    assert.match(String(rig.told('error')[0].error), /15000 ms/);
    await rig.clock.advance(250);
    answers[0][0]('t.late');
    await settled();
    assert.equal(rig.sockets.length, 0);
    answers[1][0]('t.good');
    await settled();
    assert.deepEqual(rig.sockets.map(({ protocols }) => protocols[1]), ['wsgate.bearer.t.good']);
    rig.client.close();
    answers[0][1](new Error('later still'));
  });

  test('a socket that is never welcome is given up', async () => {
    const rig = makeRig();
    const socket = await rig.connects();
    await rig.clock.advance(15_000);
    assert.equal(socket.closedWith, 1000);
    assert.equal(rig.client.state, 'waiting');
    await rig.clock.advance(250);
    socket.welcomes();
    assert.equal(rig.client.state, 'connecting', 'an old socket is not heard');
    socket.ends(4500);
    assert.equal(rig.client.state, 'connecting');
    rig.client.close();
  });

  test('a WebSocket class that throws is a failed try', async () => {
    const rig = makeRig({ WebSocket: class { constructor() { throw new Error('no'); } } });
    await rig.connects();
    assert.equal(rig.client.state, 'waiting');
    rig.client.close();
  });
});

describe('watchdog', () => {
  test('it asks after ping_s of silence, and hears any answer', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    await rig.clock.advance(24_999);
    assert.equal(socket.said('ping').length, 0);
    await rig.clock.advance(1);
    assert.deepEqual(socket.said('ping'), [{ op: 'ping' }]);
    await rig.clock.advance(9_999);
    socket.says({ op: 'pong' });
    await rig.clock.advance(24_999);
    assert.equal(socket.said('ping').length, 1);
    await rig.clock.advance(1);
    assert.equal(socket.said('ping').length, 2);
    assert.equal(rig.client.state, 'open');
    rig.client.close();
  });

  test('it does not ask while the server speaks', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    for (let turn = 0; turn < 10; turn += 1) {
      await rig.clock.advance(20_000);
      socket.says({ op: 'msg', ch: 'news', data: 1 });
    }
    assert.equal(socket.said('ping').length, 0);
    rig.client.close();
  });

  test('silence after a ping is a lost connection', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    await rig.clock.advance(34_999);
    assert.equal(rig.client.state, 'open');
    await rig.clock.advance(1);
    assert.equal(rig.client.state, 'waiting');
    assert.equal(socket.closedWith, 1000);
    assert.deepEqual(rig.told('close'), [
      { code: 1006, reason: 'heartbeat_timeout', willReconnect: true, delayMs: 250 },
    ]);
    await rig.clock.advance(250);
    assert.equal(rig.sockets.length, 2);
    rig.client.close();
  });

  test('a server that pings nobody is asked every 25 s', async () => {
    const rig = makeRig();
    const socket = await rig.opens({ ping_s: 0 });
    await rig.clock.advance(24_999);
    assert.deepEqual(socket.sent, []);
    await rig.clock.advance(1);
    assert.deepEqual(socket.sent, [{ op: 'ping' }]);
    rig.client.close();
  });
});

describe('pages', () => {
  /** A page that comes and goes, in place of the window. */
  function withPage(run) {
    return async () => {
      const page = new EventTarget();
      const document = Object.assign(new EventTarget(), { visibilityState: 'visible' });
      globalThis.document = document;
      globalThis.addEventListener = page.addEventListener.bind(page);
      globalThis.removeEventListener = page.removeEventListener.bind(page);
      try {
        await run({
          online: () => page.dispatchEvent(new Event('online')),
          shows: (visibilityState) => {
            document.visibilityState = visibilityState;
            document.dispatchEvent(new Event('visibilitychange'));
          },
        });
      } finally {
        delete globalThis.document;
        delete globalThis.addEventListener;
        delete globalThis.removeEventListener;
      }
    };
  }

  /** A client that waits half a minute. */
  async function waitingRig(retryMs = 0) {
    const rig = makeRig({ backoff: { firstMs: 60_000, mostMs: 60_000 } });
    const socket = await rig.opens();
    socket.says({ op: 'bye', code: 4012, reason: 'drain', reconnect: true, retry_ms: retryMs });
    socket.ends(4012);
    return rig;
  }

  test('coming online or into sight while waiting means trying at once, with some jitter', withPage(async (page) => {
    for (const wake of [page.online, () => page.shows('visible')]) {
      const rig = await waitingRig();
      wake();
      await rig.clock.advance(249);
      assert.equal(rig.sockets.length, 1);
      await rig.clock.advance(1);
      assert.equal(rig.sockets.length, 2);
      rig.client.close();
    }
  }));

  test('a page in the background that comes online tries too; going there is nothing', withPage(async (page) => {
    const rig = await waitingRig();
    page.shows('hidden');
    await rig.clock.advance(1000);
    assert.equal(rig.sockets.length, 1);
    page.online();
    await rig.clock.advance(250);
    assert.equal(rig.sockets.length, 2);
    rig.client.close();
  }));

  test('what the server asked for is waited for all the same', withPage(async (page) => {
    const rig = await waitingRig(10_000);
    await rig.clock.advance(4_000);
    page.online();
    await rig.clock.advance(6_249);
    assert.equal(rig.sockets.length, 1);
    await rig.clock.advance(1);
    assert.equal(rig.sockets.length, 2);
    rig.client.close();
  }));

  test('a try is never put off, and in other states nothing happens', withPage(async (page) => {
    const rig = makeRig();
    page.online();
    assert.equal(rig.client.state, 'idle');
    await rig.connects();
    page.online();
    rig.socket.welcomes();
    page.online();
    await rig.clock.advance(10_000);
    assert.equal(rig.sockets.length, 1);
    rig.socket.ends(1006);
    await rig.clock.advance(200);
    page.online();
    await rig.clock.advance(50);
    assert.equal(rig.sockets.length, 2, 'as planned');
    rig.client.close();
    page.online();
    page.shows('visible');
    await rig.clock.advance(60_000);
    assert.equal(rig.sockets.length, 2);
  }));
});

describe('close()', () => {
  const ways = {
    idle: async () => {},
    'asking for a token': async (rig) => { await rig.connects(); },
    'opening a socket': async (rig) => { await rig.connects(); },
    open: async (rig) => { await rig.opens(); },
    waiting: async (rig) => { (await rig.opens()).ends(1006); },
  };
  for (const [name, reach] of Object.entries(ways)) {
    test(`while ${name}`, async () => {
      const rig = makeRig({ token: name === 'asking for a token' ? () => new Promise(() => {}) : undefined });
      await reach(rig);
      const subscription = rig.client.subscribe('news');
      const next = subscription[Symbol.asyncIterator]().next();
      const publishing = rig.client.publish('news', 1);
      rig.client.close();
      rig.client.close();
      assert.equal(rig.client.state, 'closed');
      assert.equal(rig.clock.timerCount, 0, 'no timer is left');
      assert.deepEqual(await next, { value: undefined, done: true });
      // What was said already may have been done.
      await assert.rejects(publishing, name === 'open' ? ConnectionLostError : ClientClosedError);
      await assert.rejects(subscription.ready, ClientClosedError);
      assert.deepEqual(rig.told('close').at(-1), {
        code: 1000, reason: 'by close()', willReconnect: false, delayMs: 0,
      });
      await assert.rejects(rig.client.connect(), ClientClosedError);
      const count = rig.sockets.length;
      for (const socket of rig.sockets) {
        assert.ok(socket.closedWith === 1000 || socket.readyState === 3);
        socket.ends(1006);
      }
      await rig.clock.advance(600_000);
      assert.equal(rig.sockets.length, count);
      assert.equal(rig.client.state, 'closed');
    });
  }

  test('from within every event', async () => {
    for (const type of ['state', 'open', 'close', 'error', 'gap']) {
      for (let turn = 0; turn < 12; turn += 1) {
        const rig = makeRig({ queueLimit: 1 });
        let left = turn;
        rig.client.addEventListener(type, () => { if ((left -= 1) < 0) rig.client.close(); });
        rig.client.subscribe('news');
        await rig.connects();
        rig.socket?.welcomes();
        const news = { op: 'msg', ch: 'news', data: 1 };
        rig.socket?.says({ op: 'subbed', ch: 'news', id: 1 }, news, news, news, { op: 'gap', ch: 'news' });
        rig.socket?.saysText('{');
        rig.socket?.ends(1006);
        await rig.clock.advance(1_000);
        if (rig.sockets.length > 1) rig.socket.welcomes();
        rig.client.close();
        assert.equal(rig.client.state, 'closed');
        assert.equal(rig.clock.timerCount, 0, `${type} ${turn}`);
        const end = rig.events.findIndex(({ state }) => state === 'closed');
        const after = rig.events.slice(end + 1);
        assert.deepEqual(after.map(({ willReconnect }) => willReconnect), [false], 'its close is the last event');
      }
    }
  });
});

test('close() from within the error of a try or a connection that is given up', async () => {
  const faults = { token: () => { throw new Error('away'); }, welcome: () => 'a.b.c', pong: () => 'a.b.c' };
  for (const [what, token] of Object.entries(faults)) {
    const rig = makeRig({ token });
    rig.client.addEventListener('error', () => rig.client.close());
    await rig.connects();
    if (what === 'pong') rig.socket.welcomes();
    await rig.clock.advance(60_000);
    assert.equal(rig.client.state, 'closed', what);
    assert.deepEqual(rig.told('close').map(({ code }) => code), [1000], what);
  }
});

test('states are told in their order', async () => {
  const rig = makeRig();
  assert.equal(rig.client.state, 'idle');
  const opened = rig.client.connect();
  rig.client.connect();
  await settled();
  assert.equal(rig.sockets.length, 1);
  rig.socket.welcomes({ bus: false });
  await opened;
  assert.deepEqual(rig.told('open'), [{ conn: '9f2c5ef8ca0c0001', user: '42', node: 'a-1', isBusAway: true }]);
  rig.socket.ends(4012);
  await rig.reopens();
  rig.client.close();
  assert.deepEqual(
    rig.told('state').map(({ state }) => state),
    ['connecting', 'open', 'waiting', 'connecting', 'open', 'closed'],
  );
});

test('an address is taken as pages write it, and nonsense is refused at once', async () => {
  const { sockets, FakeSocket: WebSocket } = fakeNetwork();
  for (const [address, expected] of [
    ['ws://a.example:8000/ws', 'ws://a.example:8000/ws'],
    ['https://a.example/ws?ch=news#part', 'wss://a.example/ws?ch=news'],
    [new URL('http://a.example/ws'), 'ws://a.example/ws'],
  ]) {
    const client = new Client(address, { WebSocket });
    client.connect();
    await settled();
    assert.equal(sockets.at(-1).url, expected);
    client.close();
  }
  assert.throws(() => new Client('ftp://a.example', { WebSocket }), TypeError);
  assert.throws(() => new Client('/ws', { WebSocket }), TypeError);
  assert.throws(() => new Client('ws://a.example', { WebSocket: 7 }), TypeError);
  assert.ok(new WsgateError('x') instanceof Error);
});

test('an option that is out of its range is refused with its name, and the bounds are accepted', () => {
  const noNumbers = [NaN, '5', {}, true];
  const cases = {
    firstMs: [[-1, Infinity], [0, 0.5, 1e6]],
    mostMs: [[-1, Infinity], [0, 0.5, 1e6]],
    connectTimeoutMs: [[0, -1, -Infinity], [0.5, 1e9, Infinity]],
    commandTimeoutMs: [[0, -1, -Infinity], [0.5, 1e9, Infinity]],
    queueLimit: [[0, -1, 1.5, -Infinity], [1, 2 ** 40, Infinity]],
  };
  for (const [name, [refused, accepted]] of Object.entries(cases)) {
    const isOfBackoff = name === 'firstMs' || name === 'mostMs';
    const options = (value) => (isOfBackoff ? { backoff: { [name]: value } } : { [name]: value });
    for (const value of [...refused, ...noNumbers]) {
      const expected = { name: 'TypeError', message: new RegExp(`${name} must be`) };
      assert.throws(() => makeRig(options(value)), expected, `${name}: ${value}`);
    }
    for (const value of accepted) makeRig(options(value)).client.close();
  }
});
