// Letting the connection go for a while: disconnect() keeps the subscriptions, connect() goes on, close() is final.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { ClientClosedError, ConnectionLostError } from '../../wsgate/client/js/wsgate.js';
import { makeRig, settled } from '../support/fake_network.mjs';

const subbed = (socket, ch, id, more = {}) => socket.says({ op: 'subbed', ch, id, ...more });

describe('disconnect()', () => {
  const ways = {
    'asking for a token': async (rig) => { await rig.connects(); },
    'opening a socket': async (rig) => { await rig.connects(); },
    open: async (rig) => { await rig.opens(); },
    waiting: async (rig) => { (await rig.opens()).ends(1006); },
  };
  for (const [name, reach] of Object.entries(ways)) {
    test(`while ${name}, and connect() afterwards`, async () => {
      let isHanging = name === 'asking for a token';
      const rig = makeRig({ token: () => (isHanging ? new Promise(() => {}) : 't.1') });
      const subscription = rig.client.subscribe('news');
      await reach(rig);
      const first = rig.client.connect();
      rig.client.disconnect();
      rig.client.disconnect();
      assert.equal(rig.client.state, 'idle');
      assert.equal(rig.clock.timerCount, 0, 'no timer is left');
      const { code, reason, willReconnect } = rig.told('close').at(-1);
      assert.deepEqual([code, reason, willReconnect], [1000, 'by disconnect()', false]);
      await (name === 'open' ? first : assert.rejects(first, ConnectionLostError));
      for (const socket of rig.sockets) {
        assert.ok(socket.closedWith === 1000 || socket.readyState === 3);
        socket.ends(1006);
      }
      const count = rig.sockets.length;
      await rig.clock.advance(600_000);
      assert.equal(rig.sockets.length, count, 'nothing happens meanwhile');
      assert.equal(rig.client.state, 'idle');

      isHanging = false;
      const again = rig.client.connect();
      await settled();
      assert.equal(rig.sockets.length, count + 1);
      rig.socket.welcomes();
      await again;
      const { id } = rig.socket.said('sub')[0];
      subbed(rig.socket, 'news', id);
      await subscription.ready;
      rig.client.close();
    });
  }

  test('positions, iterators and callbacks are kept', async () => {
    const rig = makeRig();
    const [news, other] = [rig.client.subscribe('news'), rig.client.subscribe('other')];
    const heard = [];
    other.onPublication = ({ data }) => heard.push(data);
    const socket = await rig.opens();
    subbed(socket, 'news', 1, { pos: 'Qz-1' });
    subbed(socket, 'other', 2);
    socket.says({ op: 'msg', ch: 'news', data: 'first', pos: 'Qz-2' });
    const iterator = news[Symbol.asyncIterator]();
    assert.equal((await iterator.next()).value.data, 'first');
    const next = iterator.next();
    rig.client.disconnect();
    assert.equal(news.position, 'Qz-2');
    rig.client.subscribe('meanwhile');
    other.unsubscribe();
    rig.client.subscribe('other').onPublication = ({ data }) => heard.push(data);
    rig.client.connect();
    await settled();
    rig.socket.welcomes();
    const asked = rig.socket.said('sub').map(({ ch, from }) => [ch, from]);
    assert.deepEqual(asked, [['news', 'Qz-2'], ['meanwhile', undefined], ['other', undefined]]);
    subbed(rig.socket, 'news', rig.socket.said('sub')[0].id, { pos: 'Qz-3', recovered: true });
    rig.socket.says({ op: 'msg', ch: 'news', data: 'second', pos: 'Qz-3' });
    assert.equal((await next).value.data, 'second');
    assert.deepEqual(rig.told('gap'), []);
    rig.client.close();
  });

  test('connect, disconnect, connect, as a view that is mounted twice does, leaves one connection', async () => {
    const rig = makeRig({ token: async () => 't.1' });
    for (let turn = 0; turn < 3; turn += 1) {
      rig.client.connect();
      rig.client.disconnect();
    }
    const opened = rig.client.connect();
    await settled();
    assert.equal(rig.sockets.filter(({ closedWith }) => closedWith === undefined).length, 1);
    rig.socket.welcomes();
    await opened;
    assert.equal(rig.client.state, 'open');
    rig.client.close();
  });

  test('commands that were sent reject, others wait for the next connection', async () => {
    const rig = makeRig();
    await rig.opens();
    const sent = rig.client.publish('news', 1);
    rig.client.disconnect();
    await assert.rejects(sent, ConnectionLostError);
    const waiting = rig.client.publish('news', 2);
    rig.client.connect();
    await settled();
    rig.socket.welcomes();
    assert.deepEqual(rig.socket.said('pub').map(({ data }) => data), [2]);
    rig.socket.says({ op: 'ok', id: rig.socket.said('pub')[0].id });
    await waiting;
    rig.client.close();
  });

  test('the time that the server asked for is kept', async () => {
    const rig = makeRig();
    const socket = await rig.opens();
    socket.says({ op: 'bye', code: 4012, reason: 'drain', reconnect: true, retry_ms: 10_000 });
    socket.ends(4012);
    await rig.clock.advance(4_000);
    rig.client.disconnect();
    rig.client.connect();
    assert.equal(rig.client.state, 'waiting');
    await rig.clock.advance(6_249);
    assert.equal(rig.sockets.length, 1);
    await rig.clock.advance(1);
    assert.equal(rig.sockets.length, 2);
    rig.client.close();
  });

  test('close() is final after it too, and disconnect() after close() is nothing', async () => {
    const rig = makeRig();
    await rig.opens();
    rig.client.disconnect();
    rig.client.close();
    rig.client.disconnect();
    assert.equal(rig.client.state, 'closed');
    await assert.rejects(rig.client.connect(), ClientClosedError);
    assert.deepEqual(rig.told('state').map(({ state }) => state), ['connecting', 'open', 'idle', 'closed']);
  });

  test('from within every event, and connect() right behind it', async () => {
    for (const type of ['state', 'open', 'close', 'error', 'gap']) {
      for (let turn = 0; turn < 10; turn += 1) {
        const rig = makeRig({ queueLimit: 1 });
        let left = turn;
        rig.client.addEventListener(type, () => {
          if ((left -= 1) !== -1) return;
          rig.client.disconnect();
          rig.client.connect();
        });
        rig.client.subscribe('news');
        await rig.connects();
        rig.socket?.welcomes();
        const news = { op: 'msg', ch: 'news', data: 1 };
        rig.socket?.says({ op: 'subbed', ch: 'news', id: 1 }, news, news, news, { op: 'gap', ch: 'news' });
        rig.socket?.saysText('{');
        rig.socket?.ends(1006);
        await rig.clock.advance(2_000);
        assert.equal(rig.sockets.filter(({ closedWith, readyState }) => closedWith === undefined && readyState < 2).length, 1);
        for (let tries = 0; rig.client.state !== 'open' && tries < 3; tries += 1) {
          await rig.clock.advance(1_000);
          rig.socket.welcomes();
        }
        assert.equal(rig.client.state, 'open', `${type} ${turn}`);
        rig.client.close();
        assert.equal(rig.clock.timerCount, 0, `${type} ${turn}`);
      }
    }
  });
});
