// The client in engines that have little: no DOM, as React Native, and its own events in place of theirs.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import vm from 'node:vm';

import { FakeClock, fakeNetwork, makeRig, settled } from '../support/fake_network.mjs';

const SOURCE = readFileSync(new URL('../../wsgate/client/js/wsgate.js', import.meta.url), 'utf8');
const README = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
const SCRIPT = `${SOURCE.replace(/^export /gm, '')}
;globalThis.wsgate = { Client, WsgateError, CommandError, UnauthorizedError };`;

/** What an engine must have, and what the client uses where it is there: the README names them all. */
const NEEDED = ['WebSocket', 'setTimeout', 'clearTimeout'];
const USED = [
  'performance', 'URL', 'location', 'document', 'reportError', 'addEventListener', 'removeEventListener',
];

/** An engine with the needed things and these more, and what was looked up in it that is not of the language. */
function makeEngine(more = {}) {
  const clock = new FakeClock();
  const { sockets, FakeSocket } = fakeNetwork();
  const asked = new Set();
  const global = { WebSocket: FakeSocket, setTimeout: clock.setTimeout, clearTimeout: clock.clearTimeout, ...more };
  const context = vm.createContext({});
  vm.runInContext('globalThis.globalThis = globalThis', context);
  const language = new Set(vm.runInContext('Object.getOwnPropertyNames(globalThis)', context));
  // The module sees this in place of the global object, and beside it the language alone.
  const seen = new Proxy(global, {
    get: (target, name) => {
      if (typeof name === 'string' && !language.has(name)) asked.add(name);
      return target[name];
    },
  });
  context.seen = seen;
  vm.runInContext(`(function (globalThis) { ${SCRIPT} })(seen)`, context);
  return { clock, sockets, asked, wsgate: global.wsgate };
}

/** One conversation: everything that a client does. */
async function converse({ wsgate, clock, sockets }) {
  const told = [];
  const client = new wsgate.Client('wss://push.example/ws', { token: () => 'a.b.c' });
  for (const type of ['open', 'close', 'error', 'gap', 'state', 'join', 'leave']) {
    client.addEventListener(type, (event) => told.push([event.type, event.target === client]));
  }
  const heard = [];
  const subscription = client.subscribe('news');
  subscription.onPublication = ({ data }) => heard.push(data);
  const opened = client.connect();
  await settled();
  sockets[0].welcomes({ expires_s: 100 });
  await opened;
  sockets[0].says({ op: 'subbed', ch: 'news', id: sockets[0].said('sub')[0].id });
  sockets[0].says({ op: 'msg', ch: 'news', data: 1 }, { op: 'msg', ch: 'news', b64: '//79/AA=' }, { op: 'gap', ch: 'news' });
  const publishing = client.publish('news', { a: 1 });
  sockets[0].says({ op: 'ok', id: sockets[0].said('pub')[0].id });
  await publishing;
  await clock.advance(24_000);
  sockets[0].ends(1006);
  client.disconnect();
  client.connect();
  await settled();
  sockets[1].welcomes();
  client.close();
  assert.equal(client.state, 'closed');
  assert.deepEqual([heard[0], ...heard[1]], [1, 255, 254, 253, 252, 0]);
  assert.ok(told.every(([, isClient]) => isClient));
  assert.deepEqual([...new Set(told.map(([type]) => type))].sort(), ['close', 'error', 'gap', 'open', 'state']);
}

describe('engines', () => {
  test('with nothing but a WebSocket and timers it works', async () => {
    await converse(makeEngine());
  });

  test('with any one of what it may use it works', async () => {
    const quiet = () => {};
    const page = {
      performance: { now: () => 0 }, URL, location: { href: 'https://push.example/' }, reportError: quiet,
      document: { visibilityState: 'visible' }, addEventListener: quiet, removeEventListener: quiet,
    };
    assert.deepEqual(Object.keys(page).sort(), [...USED].sort());
    for (const name of USED) await converse(makeEngine({ [name]: page[name] }));
    await converse(makeEngine(page));
  });

  test('a URL class that changes addresses, as that of React Native, does no harm', async () => {
    class BrokenURL {
      constructor(text) { this.href = `${text}/`; }
      get search() { throw new Error('not implemented'); }
    }
    const engine = makeEngine({ URL: BrokenURL });
    await converse(engine);
    assert.equal(engine.sockets[0].url, 'wss://push.example/ws');
  });

  test('without a WebSocket and without an option for one it says so', () => {
    const engine = makeEngine({ WebSocket: undefined });
    assert.throws(() => new engine.wsgate.Client('ws://a.example/ws'), /no WebSocket class/);
    new engine.wsgate.Client('ws://a.example/ws', { WebSocket: class {} });
  });

  test('what it asks of the engine is what the README lists', async () => {
    const engine = makeEngine();
    await converse(engine);
    const asked = [...engine.asked].filter((name) => name !== 'wsgate').sort();
    assert.deepEqual(asked.filter((name) => !NEEDED.includes(name) && !USED.includes(name)), []);
    for (const name of [...NEEDED, ...USED]) assert.ok(README.includes(`\`${name}`), `the README names ${name}`);
  });

  test('the source uses no name of an engine but through globalThis', () => {
    // In a context that has only the language any other name is a ReferenceError when it is reached; this looks at all.
    const code = SOURCE.replace(/\/\*[\s\S]*?\*\//g, '').replace(/\/\/ .*$/gm, '').replace(/'(?:[^'\\\n]|\\.)*'/g, "''");
    for (const name of [
      'Event', 'EventTarget', 'CustomEvent', 'atob', 'btoa', 'structuredClone', 'AbortController', 'queueMicrotask',
      'TextDecoder', 'TextEncoder', 'navigator', 'localStorage', 'crypto', 'fetch', 'process', 'Buffer', 'window', 'self',
      'setInterval', 'setImmediate', 'require', 'console', 'Blob',
    ]) {
      assert.doesNotMatch(code, new RegExp(`(?<![\\w.#$])${name}(?![\\w$:])`), name);
    }
  });
});

describe('events', () => {
  const told = [];
  const listen = (rig, type, ...more) => rig.client.addEventListener(type, ...more);

  test('listeners are functions or objects, called once each, in their order', async () => {
    const rig = makeRig();
    told.length = 0;
    const one = () => told.push('one');
    const two = { handleEvent: (event) => told.push(['two', event.type, event.state]) };
    listen(rig, 'state', one);
    listen(rig, 'state', one);
    listen(rig, 'state', two, true);
    listen(rig, 'state', null);
    listen(rig, 'state', function () { told.push(this === rig.client); }, { once: true });
    await rig.connects();
    rig.socket.welcomes();
    assert.deepEqual(told, ['one', ['two', 'state', 'connecting'], true, 'one', ['two', 'state', 'open']]);
    rig.client.removeEventListener('state', one);
    rig.client.removeEventListener('state', () => {});
    rig.client.removeEventListener('never', one);
    rig.client.close();
    assert.deepEqual(told.slice(5), [['two', 'state', 'closed']]);
  });

  test('a listener that is removed or added while an event is told', async () => {
    const rig = makeRig();
    told.length = 0;
    const late = () => told.push('late');
    const removed = () => told.push('removed');
    listen(rig, 'state', () => {
      told.push('first');
      rig.client.removeEventListener('state', removed);
      listen(rig, 'state', late);
    }, { once: true });
    listen(rig, 'state', removed);
    await rig.connects();
    assert.deepEqual(told, ['first']);
    rig.client.close();
    assert.deepEqual(told, ['first', 'late']);
  });

  test('a signal removes its listener, and stopImmediatePropagation() spares the others', async () => {
    const rig = makeRig();
    told.length = 0;
    const controller = new AbortController();
    listen(rig, 'state', () => told.push('signal'), { signal: controller.signal });
    listen(rig, 'state', () => told.push('never'), { signal: AbortSignal.abort() });
    listen(rig, 'state', (event) => { if (event.state === 'open') event.stopImmediatePropagation(); });
    listen(rig, 'state', ({ state }) => told.push(state));
    await rig.connects();
    controller.abort();
    rig.socket.welcomes();
    rig.client.close();
    assert.deepEqual(told, ['signal', 'connecting', 'closed']);
  });

  test('what a listener throws stops neither the client nor other listeners, and is thrown where nobody catches it', async () => {
    const thrown = [];
    const rig = makeRig();
    const clock = rig.clock;
    const fault = new Error('of the application');
    listen(rig, 'state', () => { throw fault; });
    listen(rig, 'state', {});
    told.length = 0;
    listen(rig, 'state', ({ state }) => told.push(state));
    globalThis.reportError = (error) => thrown.push(error);
    try {
      await rig.connects();
      rig.socket.welcomes();
    } finally {
      delete globalThis.reportError;
    }
    assert.deepEqual(told, ['connecting', 'open']);
    assert.equal(thrown.length, 4);
    assert.equal(thrown[0], fault);
    assert.ok(thrown[1] instanceof TypeError);
    rig.client.removeEventListener('state', {});
    rig.client.close();
    await assert.rejects(clock.advance(0), fault);
    await assert.rejects(clock.advance(0), TypeError);
  });

  test('an event of the application is dispatched too', () => {
    const rig = makeRig();
    told.length = 0;
    listen(rig, 'mine', (event) => told.push(event));
    const event = { type: 'mine' };
    assert.equal(rig.client.dispatchEvent(event), true);
    assert.equal(rig.client.dispatchEvent(new Event('mine')), true);
    assert.equal(told[0], event);
    assert.equal(told.length, 2);
  });

  test('base64 of every length is what atob makes of it, and nonsense is refused', async () => {
    const rig = makeRig();
    const heard = [];
    rig.client.subscribe('news').onPublication = ({ data }) => heard.push([...data]);
    const socket = await rig.opens();
    socket.says({ op: 'subbed', ch: 'news', id: 1 });
    for (let length = 0; length < 70; length += 1) {
      const bytes = Array.from({ length }, (_, index) => (index * 37 + length * 101) & 255);
      socket.says({ op: 'msg', ch: 'news', b64: Buffer.from(bytes).toString('base64') });
      assert.deepEqual(heard.at(-1), bytes);
    }
    const count = heard.length;
    for (const b64 of ['*', 'AA*A', 'A A=', '\u0100AAA', 7, null]) socket.says({ op: 'msg', ch: 'news', b64 });
    assert.equal(heard.length, count);
    rig.client.close();
  });
});
