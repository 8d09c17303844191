// Channels: subscribing through all connections, positions, gaps, what an application reads.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { WsgateError } from '../../wsgate/client/js/wsgate.js';
import { makeRig, settled } from '../support/fake_network.mjs';

const LONG_S = 1e6; // a server that is not asked for a pong here
const BIG = 9007199254740993n; // 2^53 + 1: no double holds it

const msg = (ch, data, pos) => ({ op: 'msg', ch, data, pos });
const subbed = (socket, ch, fields) => {
  const { id } = socket.said('sub').findLast((message) => message.ch === ch);
  socket.says({ op: 'subbed', ch, id, ...fields });
};

/** What a subscription gives from now on. */
function collect(subscription) {
  const data = [];
  subscription.onPublication = (publication) => data.push(publication.data);
  return data;
}

/** A client with `news` subscribed, held where `pos` says. */
async function subscribedRig(fields = {}, options = {}) {
  const rig = makeRig(options);
  const subscription = rig.client.subscribe('news');
  const socket = await rig.opens();
  subbed(socket, 'news', fields);
  await subscription.ready;
  return { rig, socket, subscription, data: collect(subscription) };
}

describe('subscribing', () => {
  test('before there is a connection, and on one', async () => {
    const rig = makeRig();
    const early = rig.client.subscribe('a');
    const socket = await rig.opens();
    const late = rig.client.subscribe('b', { token: 'x.y.z' });
    assert.deepEqual(socket.sent, [
      { op: 'sub', ch: 'a', id: 1 },
      { op: 'sub', ch: 'b', token: 'x.y.z', id: 2 },
    ]);
    subbed(socket, 'b');
    await late.ready;
    subbed(socket, 'a');
    await early.ready;
    assert.equal(early.channel, 'a');
    assert.equal(early.position, undefined);
    rig.client.close();
  });

  test('again on each connection, in the same order', async () => {
    const rig = makeRig();
    for (const name of ['a', 'b', 'c']) rig.client.subscribe(name, { token: name === 'b' ? 'x.y.z' : undefined });
    (await rig.opens()).ends(4012);
    const socket = await rig.reopens();
    assert.deepEqual(socket.sent.map(({ ch, token }) => [ch, token]), [
      ['a', undefined], ['b', 'x.y.z'], ['c', undefined],
    ]);
    rig.client.close();
  });

  test('twice at a time is a mistake, and again after its end is none', async () => {
    const { rig, socket, subscription } = await subscribedRig();
    assert.throws(() => rig.client.subscribe('news'), WsgateError);
    assert.throws(() => rig.client.subscribe(''), TypeError);
    assert.throws(() => rig.client.subscribe(7), TypeError);
    const done = subscription.unsubscribe();
    const again = rig.client.subscribe('news');
    assert.deepEqual(socket.sent.map(({ op, id }) => [op, id]), [['sub', 1], ['unsub', 2], ['sub', 3]]);
    socket.says({ op: 'unsubbed', ch: 'news', id: 2 });
    await done;
    socket.says({ op: 'subbed', ch: 'news', id: 3 });
    await again.ready;
    rig.client.close();
  });

  test('what is unsubscribed stays so', async () => {
    const { rig, socket, subscription, data } = await subscribedRig();
    const done = subscription.unsubscribe();
    socket.says(msg('news', 1));
    socket.ends(1006);
    await done; // the connection that would have answered is gone
    await subscription.unsubscribe();
    assert.deepEqual((await rig.reopens()).sent, []);
    assert.deepEqual(data, []);
    rig.client.close();
  });

  test('the answer to a subscription taken back is not heard', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    const subscription = rig.client.subscribe('news');
    subscription.unsubscribe();
    subbed(socket, 'news', { pos: 'Qz-5' });
    await assert.rejects(subscription.ready, WsgateError);
    assert.deepEqual(rig.events.filter(({ type }) => type === 'gap' || type === 'error'), []);
    rig.client.close();
  });

  test('a refusal for good ends it, and others are asked for again', async () => {
    const err = (id, code, error, more) => ({ op: 'err', id, ch: 'news', code, error, message: 'm', ...more });
    const final = { 400: 'bad_request', 401: 'unauthorized', 403: 'permission_denied', 404: 'unknown_channel' };
    for (const [code, error] of Object.entries(final).map(([number, name]) => [Number(number), name])) {
      const rig = makeRig();
      const subscription = rig.client.subscribe('news', { token: 'x.y.z' });
      const next = subscription[Symbol.asyncIterator]().next();
      (await rig.opens()).says(err(1, code, error));
      await assert.rejects(subscription.ready, { name: 'CommandError', code, error, channel: 'news' });
      await assert.rejects(next, { code });
      assert.equal(rig.told('error').length, 1);
      rig.socket.ends(1006);
      assert.deepEqual((await rig.reopens()).sent, [], 'not asked for again');
      rig.client.subscribe('news');
      rig.client.close();
    }
    const rig = makeRig();
    const subscription = rig.client.subscribe('news');
    const socket = await rig.opens();
    socket.says(err(1, 503, 'unavailable', { retry_ms: 2000 }));
    await rig.clock.advance(2_249);
    assert.equal(socket.said('sub').length, 1);
    await rig.clock.advance(1);
    socket.says(err(2, 429, 'rate_limited'));
    await rig.clock.advance(500);
    assert.equal(socket.said('sub').length, 3);
    await rig.clock.advance(10_000); // no answer at all
    await rig.clock.advance(1_000);
    assert.equal(socket.said('sub').length, 4);
    subbed(socket, 'news');
    await subscription.ready;
    rig.client.close();
  });

  test('a channel token comes from its function each time, and a stale one is replaced', async () => {
    let number = 0;
    const rig = makeRig();
    rig.client.subscribe('news', { token: async () => `t.${(number += 1)}` });
    const socket = await rig.opens();
    await settled();
    socket.says({ op: 'err', id: 1, ch: 'news', code: 401, error: 'unauthorized', message: 'm' });
    await rig.clock.advance(250);
    assert.deepEqual(socket.said('sub').map(({ token }) => token), ['t.1', 't.2']);
    rig.client.close();
  });

  test('a channel token function that fails or hangs does not stop the others', async () => {
    const rig = makeRig();
    rig.client.subscribe('a', { token: () => { throw new Error('away'); } });
    rig.client.subscribe('b', { token: () => new Promise(() => {}) });
    rig.client.subscribe('c');
    const socket = await rig.opens({ ping_s: LONG_S });
    await rig.clock.advance(20_000);
    assert.deepEqual(socket.said('sub').map(({ ch }) => ch).filter((ch) => ch !== 'c'), []);
    assert.equal(socket.said('sub')[0].ch, 'c');
    assert.ok(rig.told('error').length > 3);
    assert.equal(rig.client.state, 'open');
    rig.client.close();
  });

  test('what the server takes away is over, or asked for again', async () => {
    const { rig, socket, subscription } = await subscribedRig({ pos: 'Qz-5' });
    socket.says({ op: 'unsubbed', ch: 'news', code: 503, reason: 'unavailable', resubscribe: true });
    await rig.clock.advance(250);
    assert.deepEqual(socket.said('sub').at(-1), { op: 'sub', ch: 'news', from: 'Qz-5', id: 2 });
    subbed(socket, 'news', { pos: 'Qz-5', recovered: true });
    assert.deepEqual(rig.told('gap'), []);
    subscription.onPublication = null;
    const next = subscription[Symbol.asyncIterator]().next();
    socket.says({ op: 'unsubbed', ch: 'news', code: 403, reason: 'permission_denied', resubscribe: false });
    await assert.rejects(next, { name: 'CommandError', code: 403, error: 'permission_denied' });
    socket.ends(1006);
    assert.deepEqual((await rig.reopens()).sent, []);
    rig.client.close();
  });
});

describe('what comes with the token', () => {
  test('the inbox is not asked for: it comes by itself', async () => {
    const rig = makeRig();
    const inbox = rig.client.inbox();
    const socket = await rig.opens();
    assert.deepEqual(socket.sent, []);
    socket.says({ op: 'subbed', ch: '@me', pos: 'Qz-5' });
    await inbox.ready;
    const data = collect(inbox);
    socket.says(msg('@me', 'for you', 'Qz-6'));
    assert.deepEqual(data, ['for you']);
    rig.client.close();
  });

  test('where the inbox stood is said in the address', async () => {
    const rig = makeRig();
    const inbox = rig.client.inbox({ from: 'Qz-7' });
    const data = collect(inbox);
    assert.equal((await rig.opens()).url, 'wss://push.example/ws?from=%40me%3AQz-7');
    rig.socket.says(msg('@me', 'early', 'Qz-9'), { op: 'subbed', ch: '@me', pos: 'Qz-9', recovered: true });
    rig.socket.says(msg('@me', 8, 'Qz-8'), msg('@me', 9, 'Qz-9'));
    assert.deepEqual(data, [8, 9]);
    rig.socket.ends(1006);
    await rig.reopens();
    assert.equal(rig.socket.url, 'wss://push.example/ws?from=%40me%3AQz-9');
    rig.socket.says({ op: 'subbed', ch: '@me', pos: 'Qz-11' });
    assert.deepEqual(rig.socket.said('sub'), [{ op: 'sub', ch: '@me', from: 'Qz-9', id: 1 }], 'it was not heard');
    rig.client.close();
  });

  test('an inbox asked for late misses nothing', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    socket.says({ op: 'subbed', ch: '@me', pos: 'Qz-5' }, msg('@me', 'too early', 'Qz-6'));
    const data = collect(rig.client.inbox());
    assert.deepEqual(socket.said('sub'), [{ op: 'sub', ch: '@me', from: 'Qz-5', id: 1 }]);
    subbed(socket, '@me', { recovered: true, pos: 'Qz-6' });
    socket.says(msg('@me', 'too early', 'Qz-6'));
    assert.deepEqual(data, ['too early']);
    rig.client.close();
  });

  test('nobody has no inbox', async () => {
    const rig = makeRig();
    const inbox = rig.client.inbox();
    const socket = await rig.opens({ user: undefined });
    socket.says({ op: 'err', id: 1, ch: '@me', code: 400, error: 'bad_request', message: 'm' });
    await assert.rejects(inbox.ready, { code: 400 });
    rig.client.close();
  });

  test('a channel of the token that was asked for as well is held once', async () => {
    const rig = makeRig();
    const subscription = rig.client.subscribe('news');
    const socket = await rig.opens();
    socket.says({ op: 'subbed', ch: 'news' }, { op: 'subbed', ch: 'other' });
    socket.says({ op: 'err', id: 1, ch: 'news', code: 409, error: 'already_subscribed', message: 'm' });
    await subscription.ready;
    assert.deepEqual(rig.told('gap'), []);
    assert.deepEqual(rig.told('error'), []);
    rig.client.close();
  });

  test('such a channel recovers by the answer to our own question', async () => {
    const { rig, socket, data } = await subscribedRig({ pos: 'Qz-5' });
    socket.ends(1006);
    const next = await rig.reopens();
    next.says({ op: 'subbed', ch: 'news', pos: 'Qz-8' }, msg('news', 9, 'Qz-9'));
    assert.equal(next.said('sub').length, 1);
    subbed(next, 'news', { pos: 'Qz-9', recovered: true });
    next.says(...[6, 7, 8, 9].map((offset) => msg('news', offset, `Qz-${offset}`)));
    assert.deepEqual(data, [6, 7, 8, 9]);
    assert.deepEqual(rig.told('gap'), []);
    rig.client.close();
  });
});

describe('positions', () => {
  test('a client returns with the last one, and drops what it had', async () => {
    const { rig, socket, subscription, data } = await subscribedRig({ pos: 'Qz-5' });
    socket.says(msg('news', 6, 'Qz-6'), msg('news', 7, 'Qz-7'));
    assert.equal(subscription.position, 'Qz-7');
    socket.ends(4012);
    const next = await rig.reopens();
    assert.deepEqual(next.sent, [{ op: 'sub', ch: 'news', from: 'Qz-7', id: 2 }]);
    subbed(next, 'news', { pos: 'Qz-9', recovered: true });
    next.says(...[7, 8, 9, 8, 10].map((offset) => msg('news', offset, `Qz-${offset}`)));
    assert.deepEqual(data, [6, 7, 8, 9, 10]);
    assert.deepEqual(rig.told('gap'), []);
    rig.client.close();
  });

  test('a connection that is lost in the middle of a recovery goes on there', async () => {
    const { rig, socket, data } = await subscribedRig({ pos: 'Qz-5' });
    socket.ends(1006);
    let next = await rig.reopens();
    subbed(next, 'news', { pos: 'Qz-8', recovered: true });
    next.says(msg('news', 6, 'Qz-6'));
    next.ends(1006);
    next = await rig.reopens();
    assert.equal(next.sent[0].from, 'Qz-6');
    subbed(next, 'news', { pos: 'Qz-8', recovered: true });
    next.says(msg('news', 7, 'Qz-7'), msg('news', 8, 'Qz-8'));
    assert.deepEqual(data, [6, 7, 8]);
    rig.client.close();
  });

  test('a refused recovery is asked for again from the same place', async () => {
    const { rig, socket, data } = await subscribedRig({ pos: 'Qz-5' });
    socket.ends(1006);
    const next = await rig.reopens();
    next.says({ op: 'err', id: 2, ch: 'news', code: 503, error: 'unavailable', message: 'm', retry_ms: 10 });
    next.says(msg('news', 8, 'Qz-8'));
    await rig.clock.advance(1_000);
    assert.equal(next.said('sub').at(-1).from, 'Qz-5');
    subbed(next, 'news', { pos: 'Qz-8', recovered: true });
    next.says(...[6, 7, 8].map((offset) => msg('news', offset, `Qz-${offset}`)));
    assert.deepEqual(data, [6, 7, 8]);
    rig.client.close();
  });

  test('a first subscription that was refused does not lose what came early', async () => {
    const rig = makeRig();
    const data = collect(rig.client.subscribe('news'));
    const socket = await rig.opens();
    socket.says(msg('news', 3, 'Qz-3'));
    socket.says({ op: 'err', id: 1, ch: 'news', code: 503, error: 'unavailable', message: 'm', retry_ms: 10 });
    await rig.clock.advance(1_000);
    assert.equal(socket.said('sub').at(-1).from, 'Qz-3');
    subbed(socket, 'news', { pos: 'Qz-5', recovered: true });
    socket.says(msg('news', 4, 'Qz-4'), msg('news', 5, 'Qz-5'));
    assert.deepEqual(data, [3, 4, 5]);
    rig.client.close();
  });

  test('offsets beyond doubles are compared exactly', async () => {
    const { socket, rig, data } = await subscribedRig({ pos: `Qz-${BIG - 1n}` });
    socket.says(msg('news', 'a', `Qz-${BIG}`), msg('news', 'a', `Qz-${BIG}`), msg('news', 'b', `Qz-${BIG + 1n}`));
    socket.says(msg('news', 'c', 'Qz-100000000000000000000000'), msg('news', 'old', 'Qz-99999999999999999999999'));
    assert.deepEqual(data, ['a', 'b', 'c']);
    rig.client.close();
  });

  test('another epoch is another stream', async () => {
    const { rig, socket, subscription, data } = await subscribedRig({ pos: 'Qz-5' });
    socket.says(msg('news', 'new', 'Ab-1'), msg('news', 'twice', 'Ab-1'), msg('news', 'odd', '?'));
    assert.deepEqual(data, ['new', 'odd']);
    assert.equal(subscription.position, 'Ab-1', 'what is no position moves nothing');
    rig.client.close();
  });

  test('what has no position is delivered', async () => {
    const { rig, socket, subscription, data } = await subscribedRig({ pos: 'Qz-5' });
    socket.says(msg('news', 1), msg('news', 1));
    assert.deepEqual(data, [1, 1]);
    assert.equal(subscription.position, 'Qz-5');
    rig.client.close();
  });
});

describe('gaps', () => {
  test('dropped: the server says so', async () => {
    const { rig, socket, subscription } = await subscribedRig({ pos: 'Qz-3' });
    socket.says({ op: 'gap', ch: 'news', reason: 'slow', retry_ms: 40, from: 'Qz-3', to: 'Qz-9' });
    socket.says({ op: 'gap', ch: 'news' }, { op: 'gap', ch: 'other', reason: 'slow', retry_ms: 1 });
    assert.deepEqual(rig.told('gap'), [
      { channel: 'news', reason: 'slow', retryMs: 40, from: 'Qz-3', to: 'Qz-9' },
      { channel: 'news', reason: 'dropped', retryMs: 0, from: undefined, to: undefined },
    ]);
    assert.equal(subscription.position, 'Qz-9');
    rig.client.close();
  });

  test('of all channels: one event, however many there are', async () => {
    const { rig, socket } = await subscribedRig();
    for (const name of ['a', 'b', 'c']) rig.client.subscribe(name);
    socket.says({ op: 'gap', reason: 'bus', retry_ms: 1500 });
    socket.says({ op: 'gap', reason: 'later', retry_ms: 2 ** 53 }, { op: 'gap', reason: 'bus', retry_ms: 'soon' });
    assert.deepEqual(rig.told('gap').map(({ channel, reason, retryMs }) => [channel, reason, retryMs]), [
      [undefined, 'bus', 1500],
      [undefined, 'dropped', 3_600_000],
      [undefined, 'bus', 0],
    ]);
    rig.client.close();
  });

  test('not_recovered: it cannot be proven complete', async () => {
    const { rig, socket, subscription, data } = await subscribedRig({ pos: 'Qz-5' });
    socket.ends(1006);
    const next = await rig.reopens();
    subbed(next, 'news', { pos: 'Ab-2', recovered: false });
    assert.deepEqual(rig.told('gap'), [{ channel: 'news', reason: 'not_recovered', retryMs: 0, from: 'Qz-5', to: 'Ab-2' }]);
    assert.equal(subscription.position, 'Ab-2');
    next.says(msg('news', 2, 'Ab-2'), msg('news', 3, 'Ab-3'));
    assert.deepEqual(data, [3]);
    rig.client.close();
  });

  test('not_recovered: an answer that does not say, and a channel that lost its history', async () => {
    const { rig, socket, subscription, data } = await subscribedRig({ pos: 'Qz-5' });
    socket.ends(1006);
    const next = await rig.reopens();
    subbed(next, 'news', {});
    next.says(msg('news', 1));
    const gap = { channel: 'news', reason: 'not_recovered', retryMs: 0, from: 'Qz-5', to: undefined };
    assert.deepEqual(rig.told('gap'), [gap]);
    assert.equal(subscription.position, undefined);
    assert.deepEqual(data, [1]);
    rig.client.close();
  });

  test('not_recovered: a channel without history, after each reconnect and not before', async () => {
    const { rig, socket } = await subscribedRig();
    assert.deepEqual(rig.told('gap'), []);
    socket.ends(1006);
    subbed(await rig.reopens(), 'news');
    const gap = { channel: 'news', reason: 'not_recovered', retryMs: 0, from: undefined, to: undefined };
    assert.deepEqual(rig.told('gap'), [gap]);
    rig.client.close();
  });

  test('not_recovered: a position of long ago', async () => {
    const rig = makeRig();
    rig.client.subscribe('news', { from: 'Qz-1' });
    const socket = await rig.opens();
    assert.deepEqual(socket.sent, [{ op: 'sub', ch: 'news', from: 'Qz-1', id: 1 }]);
    subbed(socket, 'news', { pos: 'Qz-900', recovered: false });
    assert.deepEqual(rig.told('gap'), [{ channel: 'news', reason: 'not_recovered', retryMs: 0, from: 'Qz-1', to: 'Qz-900' }]);
    rig.client.close();
  });

  test('overflow: the oldest go, every one is counted, and events do not flood', async () => {
    const { rig, socket, subscription } = await subscribedRig({}, { queueLimit: 3 });
    subscription.onPublication = null;
    const iterator = subscription[Symbol.asyncIterator]();
    const counts = () => rig.told('gap').map(({ reason, droppedCount }) => [reason, droppedCount]);
    for (let number = 0; number < 10; number += 1) socket.says(msg('news', number));
    assert.deepEqual(counts(), [['overflow', 1]]);
    await rig.clock.advance(100);
    assert.deepEqual(counts(), [['overflow', 1], ['overflow', 6]]);
    await rig.clock.advance(1000);
    assert.equal(counts().length, 2);
    const read = [];
    for (let number = 0; number < 3; number += 1) read.push((await iterator.next()).value.data);
    assert.deepEqual(read, [7, 8, 9]);
    for (let number = 10; number < 15; number += 1) socket.says(msg('news', number));
    rig.client.close();
    assert.deepEqual(counts().slice(2), [['overflow', 1], ['overflow', 1]], 'the last ones too');
  });
});

describe('reading', () => {
  test('for await gets everything in order, and what came before the end', async () => {
    const { rig, socket, subscription } = await subscribedRig();
    subscription.onPublication = null;
    socket.says(msg('news', 1), msg('news', 2));
    const read = [];
    const reading = (async () => {
      for await (const { data } of subscription) read.push(data);
    })();
    await settled();
    socket.says(msg('news', 3));
    socket.says(msg('news', 4));
    rig.client.close();
    await reading;
    assert.deepEqual(read, [1, 2, 3, 4]);
  });

  test('it throws after what came before a Close for good', async () => {
    const { socket, subscription } = await subscribedRig();
    subscription.onPublication = null;
    socket.says(msg('news', 1));
    socket.ends(4500);
    const read = [];
    await assert.rejects(
      (async () => { for await (const { data } of subscription) read.push(data); })(),
      { name: 'ClientClosedError', code: 4500 },
    );
    assert.deepEqual(read, [1]);
  });

  test('a loop that is left does not unsubscribe', async () => {
    const { rig, socket, subscription } = await subscribedRig();
    subscription.onPublication = null;
    socket.says(msg('news', 1), msg('news', 2));
    for await (const { data } of subscription) { assert.equal(data, 1); break; }
    for await (const { data } of subscription) { assert.equal(data, 2); break; }
    assert.equal(socket.said('unsub').length, 0);
    rig.client.close();
  });

  test('a callback gets what waits, and its faults are told', async () => {
    const { rig, socket, subscription } = await subscribedRig();
    subscription.onPublication = null;
    socket.says(msg('news', 1));
    const fault = new Error('of the application');
    const read = [];
    subscription.onPublication = ({ data }) => { read.push(data); throw fault; };
    socket.says(msg('news', 2));
    subscription.onPublication = async ({ data }) => { read.push(data); throw fault; };
    socket.says(msg('news', 3));
    await settled();
    assert.deepEqual(read, [1, 2, 3]);
    assert.deepEqual(rig.told('error').map(({ error }) => error), [fault, fault, fault]);
    rig.client.close();
  });

  test('a publication has everything, and bytes are bytes', async () => {
    const { rig, socket, subscription } = await subscribedRig();
    const read = [];
    subscription.onPublication = (publication) => read.push(publication);
    socket.says({ op: 'msg', ch: 'news', data: null, pos: 'Qz-8', user: '42', ts: 1700000000123 });
    socket.says({ op: 'msg', ch: 'news', b64: '//4A' }, { op: 'msg', ch: 'news', b64: '' });
    assert.deepEqual(read, [
      { channel: 'news', data: null, encoding: 'json', position: 'Qz-8', user: '42', timestampMs: 1700000000123 },
      ...[[255, 254, 0], []].map((bytes) => ({
        channel: 'news', data: Uint8Array.from(bytes), encoding: 'binary',
        position: undefined, user: undefined, timestampMs: undefined,
      })),
    ]);
    rig.client.close();
  });
});
