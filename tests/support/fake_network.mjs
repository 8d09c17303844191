/**
 * A clock that the test moves, and sockets that the test controls: no time passes and nothing is sent.
 *
 * A file that imports this module also fails on a promise whose rejection is not handled.
 */
import assert from 'node:assert/strict';
import { after } from 'node:test';

import { Client } from '../../wsgate/client/js/wsgate.js';

export const EVENTS = ['open', 'close', 'error', 'gap', 'state', 'join', 'leave'];
export const WELCOME = { op: 'welcome', conn: '9f2c5ef8ca0c0001', user: '42', node: 'a-1', ping_s: 25 };
const CONNECTING = 0;
const OPEN = 1;
const CLOSING = 2;
const CLOSED = 3;

const unhandled = [];
process.on('unhandledRejection', (error) => unhandled.push(error));
after(async () => {
  await settled();
  assert.deepEqual(unhandled, [], 'rejections that nobody handled');
});

/** Resolve after every promise that can continue has continued. */
export const settled = () => new Promise((resolve) => setImmediate(resolve));

/** A random source that repeats itself. Source: mulberry32, public domain. */
export function seededRandom(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Timers that fire when a test advances the clock: a binary heap, because some tests have many of them. */
export class FakeClock {
  nowMs = 1_000_000; // no clock begins at 0
  timerCount = 0;
  #heap = []; // the next timer first; cleared timers stay until their time
  #lastNumber = 0;

  now = () => this.nowMs;

  setTimeout = (run, delayMs) => {
    assert.ok(delayMs >= 0 && delayMs < 2 ** 31, `a timer of ${delayMs} ms`);
    const timer = { run, atMs: this.nowMs + delayMs, number: (this.#lastNumber += 1) };
    this.timerCount += 1;
    let place = this.#heap.push(timer) - 1;
    for (let above; place > 0 && isBefore(timer, this.#heap[(above = (place - 1) >> 1)]); place = above) {
      this.#heap[place] = this.#heap[above];
    }
    this.#heap[place] = timer;
    return timer;
  };

  clearTimeout = (timer) => {
    if (timer?.run) this.timerCount -= 1;
    if (timer) timer.run = null;
  };

  /** Advance the clock; each timer fires at its time, and promises continue before the next one. */
  async advance(byMs) {
    const endMs = this.nowMs + byMs;
    await settled();
    while (this.#heap.length > 0 && this.#heap[0].atMs <= endMs) {
      const { run, atMs } = this.#take();
      if (!run) continue;
      this.nowMs = atMs;
      run();
      await settled();
    }
    this.nowMs = endMs;
  }

  #take() {
    const heap = this.#heap;
    const [first, last] = [heap[0], heap.pop()];
    let place = 0;
    for (let below; heap.length > 0 && (below = 2 * place + 1) < heap.length; place = below) {
      if (below + 1 < heap.length && isBefore(heap[below + 1], heap[below])) below += 1;
      if (!isBefore(heap[below], last)) break;
      heap[place] = heap[below];
    }
    if (heap.length > 0) heap[place] = last;
    const taken = { ...first };
    this.timerCount -= first.run ? 1 : 0;
    first.run = null;
    return taken;
  }
}

const isBefore = (one, other) => one.atMs < other.atMs || (one.atMs === other.atMs && one.number < other.number);

/** A WebSocket class whose sockets the test controls, and the sockets made of it. */
export function fakeNetwork() {
  const sockets = [];
  class FakeSocket {
    readyState = CONNECTING;
    sent = []; // messages of the client
    closedWith; // the arguments of close() by the client

    constructor(url, protocols) {
      Object.assign(this, { url, protocols });
      sockets.push(this);
    }

    send(text) {
      assert.equal(this.readyState, OPEN, 'said on a socket that is not open');
      this.sent.push(JSON.parse(text));
    }

    close(code) {
      this.closedWith = code;
      if (this.readyState < CLOSING) this.readyState = CLOSING;
    }

    /** The server accepts the client. */
    welcomes(fields = {}) {
      this.readyState = OPEN;
      this.onopen?.({});
      this.says({ ...WELCOME, ...fields });
    }

    says(...messages) {
      for (const message of messages) this.saysText(JSON.stringify(message));
    }

    saysText(data) {
      this.onmessage?.({ data });
    }

    ends(code, reason = '') {
      this.readyState = CLOSED;
      if (code === 1006) this.onerror?.({});
      this.onclose?.({ code, reason });
    }

    /** Return the commands of this kind. */
    said(op) {
      return this.sent.filter((message) => message.op === op);
    }
  }
  return { sockets, FakeSocket };
}

/** A client on a fake network, with all its events in `events`. */
export function makeRig(options = {}) {
  const clock = options.clock ?? new FakeClock();
  const { sockets, FakeSocket } = fakeNetwork();
  const client = new Client('wss://push.example/ws', {
    WebSocket: FakeSocket,
    random: () => 0.5,
    now: clock.now,
    setTimeout: clock.setTimeout,
    clearTimeout: clock.clearTimeout,
    ...options,
  });
  const events = [];
  for (const type of EVENTS) {
    client.addEventListener(type, (event) => {
      const fields = Object.fromEntries(Object.entries(event).filter(([name]) => name !== 'isTrusted'));
      events.push({ type, ...fields });
    });
  }
  const rig = {
    client,
    clock,
    sockets,
    events,
    get socket() {
      return sockets.at(-1);
    },
    /** Return the events of one kind without their type. */
    told: (wanted) => events.filter(({ type }) => type === wanted).map(({ type: _, ...fields }) => fields),
    /** Connect, and wait until there is a socket. */
    async connects() {
      client.connect();
      await settled();
      return rig.socket;
    },
    /** Connect, and receive the welcome. */
    async opens(fields) {
      const socket = await rig.connects();
      socket.welcomes(fields);
      return socket;
    },
    /** Wait for the next attempt, and receive its welcome. */
    async reopens(fields) {
      await clock.advance(rig.told('close').at(-1).delayMs);
      rig.socket.welcomes(fields);
      return rig.socket;
    },
  };
  return rig;
}
