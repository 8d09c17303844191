// Commands and their answers, and tokens that are refreshed.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import {
  CommandError, CommandTimeoutError, ConnectionLostError, UnauthorizedError,
} from '../../wsgate/client/js/wsgate.js';
import { makeRig, settled } from '../support/fake_network.mjs';

const LONG_S = 1e6; // a server that is not asked for a pong here

describe('publish and send', () => {
  test('what is said, and what comes back', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    const published = rig.client.publish('news', { a: [1, null] }, { key: 'k', echo: false });
    const sent = rig.client.send(null);
    assert.deepEqual(socket.sent, [
      { op: 'pub', ch: 'news', data: { a: [1, null] }, key: 'k', echo: false, id: 1 },
      { op: 'send', data: null, id: 2 },
    ]);
    socket.says({ op: 'ok', id: 2 }, { op: 'ok', id: 1, pos: 'Qz-8' });
    assert.deepEqual(await published, { position: 'Qz-8' });
    assert.equal(await sent, undefined);
    rig.client.close();
  });

  test('a refusal is a CommandError', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    const publishing = rig.client.publish('news', 1);
    socket.says({ op: 'err', id: 1, ch: 'news', code: 503, error: 'unavailable', message: 'later', retry_ms: 2000 });
    await assert.rejects(publishing, (error) => {
      assert.ok(error instanceof CommandError);
      const { name, code, error: stable, retryMs, channel, message } = error;
      assert.deepEqual({ name, code, stable, retryMs, channel, message }, {
        name: 'CommandError', code: 503, stable: 'unavailable', retryMs: 2000, channel: 'news',
        message: '503 unavailable: later',
      });
      return true;
    });
    assert.deepEqual(rig.told('error'), [], 'its promise tells of it');
    socket.says({ op: 'err', code: 429, ch: 'x', error: 'rate_limited', message: 'm' });
    assert.equal(rig.told('error')[0].error.error, 'rate_limited', 'and here no promise does');
    rig.client.close();
  });

  test('no answer in time', async () => {
    const rig = makeRig({ commandTimeoutMs: 3_000 });
    const socket = await rig.opens();
    const publishing = rig.client.publish('news', 1);
    await rig.clock.advance(2_999);
    let isOver = false;
    publishing.catch(() => { isOver = true; });
    await settled();
    assert.equal(isOver, false);
    await rig.clock.advance(1);
    await assert.rejects(publishing, CommandTimeoutError);
    socket.says({ op: 'ok', id: 1 }); // too late is no harm
    assert.equal(rig.client.state, 'open');
    rig.client.close();
  });

  test('a command waits for the connection, behind the subscriptions', async () => {
    const rig = makeRig();
    const publishing = rig.client.publish('news', 1);
    rig.client.subscribe('news');
    const socket = await rig.opens();
    assert.deepEqual(socket.sent.map(({ op }) => op), ['sub', 'pub']);
    socket.says({ op: 'ok', id: 1 });
    await publishing;
    rig.client.close();
  });

  test('but not for ever, and not any number', async () => {
    const rig = makeRig({ queueLimit: 2 });
    const waiting = [rig.client.publish('news', 1), rig.client.publish('news', 2)];
    await assert.rejects(rig.client.publish('news', 3), /too many/);
    await rig.clock.advance(10_000);
    for (const publishing of waiting) await assert.rejects(publishing, CommandTimeoutError);
    assert.deepEqual((await rig.opens()).sent, [], 'what was given up is not sent');
    rig.client.close();
  });

  test('what was said before the connection was lost is unknown, the rest waits on', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    const said = rig.client.publish('news', 1);
    socket.ends(1006);
    const unsaid = rig.client.publish('news', 2);
    await assert.rejects(said, ConnectionLostError);
    const next = await rig.reopens();
    assert.deepEqual(next.sent, [{ op: 'pub', ch: 'news', data: 2, id: 2 }]);
    next.says({ op: 'ok', id: 2 });
    await unsaid;
    rig.client.close();
  });

  test('what JSON does not hold is refused here', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    const loop = {};
    loop.loop = loop;
    for (const data of [undefined, () => 1, Symbol('x'), new Uint8Array(1), new ArrayBuffer(1), 1n, loop]) {
      await assert.rejects(rig.client.publish('news', data), TypeError);
      await assert.rejects(rig.client.send(data), TypeError);
    }
    assert.deepEqual(socket.sent, []);
    rig.client.close();
    assert.equal(rig.clock.timerCount, 0);
  });

  test('a rejection that nobody looks at is not reported as unhandled', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    rig.client.publish('news', 1);
    rig.client.send(1);
    rig.client.subscribe('news')[Symbol.asyncIterator]().next();
    rig.client.connect();
    socket.ends(4500);
    rig.client.publish('news', 1);
    rig.client.connect();
    await settled(); // the hook of the whole file fails if there was one
  });
});

describe('refresh', () => {
  const makeTokenRig = (options = {}) => {
    let number = 0;
    const rig = makeRig({ token: () => `t.${(number += 1)}`, ...options });
    return Object.assign(rig, { refreshes: () => rig.socket.said('refresh').map(({ token }) => token) });
  };

  test('ahead of expiry, and again ahead of the next one', async () => {
    const rig = makeTokenRig();
    const socket = await rig.opens({ ping_s: LONG_S, expires_s: 1000 });
    await rig.clock.advance(824_999); // 0.75 + 0.15 / 2 of it
    assert.deepEqual(rig.refreshes(), []);
    await rig.clock.advance(1);
    assert.deepEqual(rig.refreshes(), ['t.2']);
    socket.says({ op: 'ok', id: 1, expires_s: 100 });
    await rig.clock.advance(82_500);
    assert.deepEqual(rig.refreshes(), ['t.2', 't.3']);
    rig.client.close();
  });

  test('at a random time, always before the end', async () => {
    for (const [dice, atMs] of [[0, 750_000], [0.999, 899_850]]) {
      const rig = makeTokenRig({ random: () => dice });
      await rig.opens({ ping_s: LONG_S, expires_s: 1000 });
      await rig.clock.advance(atMs - 1);
      assert.deepEqual(rig.refreshes(), []);
      await rig.clock.advance(1);
      assert.deepEqual(rig.refreshes(), ['t.2']);
      rig.client.close();
    }
  });

  test('not without a function, nor for a token that never expires', async () => {
    for (const [options, fields] of [[{ token: 'a.b.c' }, { expires_s: 10 }], [{}, {}]]) {
      const rig = makeTokenRig(options);
      const socket = await rig.opens({ ping_s: LONG_S, ...fields });
      if (options.token) socket.says({ op: 'refresh', within_s: 10 });
      await rig.clock.advance(3_500_000);
      assert.deepEqual(socket.sent, []);
      rig.client.close();
    }
  });

  test('when the server asks for it: at a random moment in the first half of its time', async () => {
    for (const [dice, atMs] of [[0, 0], [0.5, 7_500], [0.999, 14_985]]) {
      const rig = makeTokenRig({ random: () => dice });
      const socket = await rig.opens({ ping_s: LONG_S, expires_s: 3600 });
      socket.says({ op: 'refresh', within_s: 30 });
      await settled();
      if (atMs > 0) {
        await rig.clock.advance(atMs - 1);
        assert.deepEqual(rig.refreshes(), []);
      }
      await rig.clock.advance(1);
      assert.deepEqual(rig.refreshes(), ['t.2']);
      rig.client.close();
    }
  });

  test('an absurd within_s is an hour', async () => {
    const rig = makeRig({ token: () => `t.${Math.random().toString(36).slice(2)}`, random: () => 1 });
    const socket = await rig.opens({ ping_s: LONG_S, expires_s: 2 ** 40 });
    socket.says({ op: 'refresh', within_s: 2 ** 53 });
    await rig.clock.advance(1_800_000 - 1);
    assert.equal(socket.said('refresh').length, 0);
    await rig.clock.advance(1);
    assert.equal(socket.said('refresh').length, 1);
    rig.client.close();
  });

  test('a token that outlives every timer is not refreshed too early', async () => {
    const rig = makeRig({ token: () => 'a.b.c' });
    const socket = await rig.opens({ ping_s: LONG_S, expires_s: 365 * 24 * 3600 });
    for (let hour = 0; hour < 30 * 24; hour += 1) {
      await rig.clock.advance(3_600_000);
      socket.says({ op: 'pong' });
    }
    assert.equal(rig.client.state, 'open');
    assert.deepEqual(rig.told('error'), []);
    rig.client.close();
  });

  test('a forced refresh does not put an earlier one off, and takes the place of a later one', async () => {
    const rig = makeTokenRig();
    const socket = await rig.opens({ ping_s: LONG_S, expires_s: 10 });
    socket.says({ op: 'refresh', within_s: 3600 });
    await rig.clock.advance(8_250);
    assert.deepEqual(rig.refreshes(), ['t.2']);
    socket.says({ op: 'ok', id: 1, expires_s: 3600 }, { op: 'refresh', within_s: 4 });
    await settled();
    await rig.clock.advance(1_000);
    assert.deepEqual(rig.refreshes(), ['t.2', 't.3']);
    rig.client.close();
  });

  test('one that fails, or is refused, or hangs, is tried again', async () => {
    const answers = ['t.1', new Error('away'), new Promise(() => {}), 't.4', 't.5'];
    const rig = makeTokenRig({ token: async () => {
      const answer = answers.shift();
      if (answer instanceof Error) throw answer;
      return answer;
    } });
    const socket = await rig.opens({ ping_s: LONG_S, expires_s: 100 });
    await rig.clock.advance(82_500);
    assert.equal(rig.told('error').length, 1);
    await rig.clock.advance(1_000); // a second after the first one began at the earliest; this one hangs
    await rig.clock.advance(15_000);
    assert.equal(rig.told('error').length, 2);
    await rig.clock.advance(500);
    assert.deepEqual(rig.refreshes(), ['t.4']);
    socket.says({ op: 'err', id: 1, code: 401, error: 'unauthorized', message: 'm' });
    await rig.clock.advance(1_000);
    assert.deepEqual(rig.refreshes(), ['t.4', 't.5']);
    assert.equal(rig.told('error').length, 3);
    assert.equal(rig.client.state, 'open');
    rig.client.close();
  });

  test('a token that is expired all the time is not asked for all the time', async () => {
    const rig = makeTokenRig();
    const socket = await rig.opens({ ping_s: LONG_S, expires_s: 0 });
    for (let turn = 1; turn <= 10; turn += 1) {
      await rig.clock.advance(999);
      assert.equal(rig.refreshes().length, turn - 1);
      await rig.clock.advance(1);
      socket.says({ op: 'ok', id: turn, expires_s: 0 });
      await settled();
    }
    assert.equal(rig.refreshes().length, 10);
    rig.client.close();
  });

  test('a server that asks for one all the time gets one in a second', async () => {
    for (const dice of [0, 0.999]) {
      const rig = makeTokenRig({ random: () => dice });
      const socket = await rig.opens({ ping_s: LONG_S });
      for (let turn = 1; turn <= 5; turn += 1) {
        socket.says({ op: 'refresh', within_s: 0 });
        await rig.clock.advance(turn === 1 ? 0 : 999);
        assert.equal(rig.refreshes().length, turn === 1 ? 1 : turn - 1);
        await rig.clock.advance(turn === 1 ? 0 : 1);
        assert.equal(rig.refreshes().length, turn);
        socket.says({ op: 'ok', id: turn, expires_s: 3600 });
        await settled();
      }
      rig.client.close();
    }
  });

  test('while one is under way no other begins, however often the server asks', async () => {
    const answers = [];
    const rig = makeTokenRig({ token: () => new Promise((resolve) => answers.push(resolve)) });
    rig.client.connect();
    await settled();
    answers.shift()('t.1');
    await settled();
    rig.socket.welcomes({ ping_s: LONG_S, expires_s: 3600 });
    for (let turn = 0; turn < 20; turn += 1) {
      rig.socket.says({ op: 'refresh', within_s: 0 });
      await rig.clock.advance(500);
    }
    assert.equal(answers.length, 1);
    answers[0]('t.1');
    await settled();
    assert.deepEqual(rig.refreshes(), ['t.1'], 'the server asked, so the same token is shown');
    rig.client.close();
  });

  test('the same token again is a failed try, unless the server asked for it', async () => {
    let token = 't.same';
    const rig = makeTokenRig({ token: () => token });
    const socket = await rig.opens({ ping_s: LONG_S, expires_s: 1 });
    await rig.clock.advance(10_000);
    assert.deepEqual(rig.refreshes(), []);
    const count = rig.told('error').length;
    assert.ok(count >= 3 && count <= 6, `${count} tries with back-off in 10 s`);
    socket.says({ op: 'refresh', within_s: 0 });
    await rig.clock.advance(1_000);
    assert.deepEqual(rig.refreshes(), ['t.same']);
    token = 't.new';
    socket.says({ op: 'ok', id: 1, expires_s: 10 });
    await rig.clock.advance(8_250);
    assert.deepEqual(rig.refreshes(), ['t.same', 't.new']);
    rig.client.close();
  });

  test('a function that says there will be no token ends the client', async () => {
    let hasLoggedOut = false;
    const rig = makeTokenRig({ token: () => {
      if (hasLoggedOut) throw new UnauthorizedError('the user has logged out');
      return 't.1';
    } });
    await rig.opens({ ping_s: LONG_S, expires_s: 100 });
    hasLoggedOut = true;
    await rig.clock.advance(82_500);
    assert.equal(rig.client.state, 'closed');
    assert.match(rig.told('error').at(-1).error.message, /401 unauthorized: the user has logged out/);
    assert.equal(rig.clock.timerCount, 0);
  });

  test('it belongs to its connection', async () => {
    const answers = [];
    const rig = makeTokenRig({ token: () => new Promise((resolve) => answers.push(resolve)) });
    const connecting = rig.connects();
    await settled();
    answers.shift()('t.1');
    await connecting;
    await settled();
    rig.socket.welcomes({ ping_s: LONG_S });
    rig.socket.says({ op: 'refresh', within_s: 0 });
    await rig.clock.advance(0);
    rig.socket.ends(4012);
    await rig.clock.advance(250);
    const [late, fresh] = answers;
    fresh('t.3');
    await settled();
    rig.socket.welcomes({ ping_s: LONG_S });
    late('t.2');
    await settled();
    assert.deepEqual(rig.socket.sent, []);
    rig.client.close();
  });
});
