/**
 * wsgate's client for browsers and Node: one connection that reconnects by itself, with its subscriptions.
 *
 * One module, no build step, no dependencies; the types are in wsgate.d.ts. It speaks `wsgate.v1` in JSON. It requires
 * ES2022 with BigInt, `WebSocket`, `setTimeout` and `clearTimeout`. It uses `performance.now`, `URL`, `location`,
 * `document`, `reportError`, `addEventListener` and `removeEventListener` if the page has them.
 *
 *     const client = new Client('wss://push.example/ws', { token: () => fetchToken() });
 *     client.connect();
 *     for await (const publication of client.subscribe('chat:42')) show(publication.data);
 *
 * | state      | meaning                                                   | next states                            |
 * |------------|-----------------------------------------------------------|----------------------------------------|
 * | idle       | not started, or disconnect() was called                   | connecting, waiting (connect()); closed |
 * | connecting | gets a token, opens a socket, waits for `welcome`         | open, waiting, idle, closed            |
 * | open       | after `welcome`: commands are sent, channels subscribed   | waiting, idle, closed                  |
 * | waiting    | the last attempt or connection ended; the next has a time | connecting, idle, closed               |
 * | closed     | final: close() was called, or a refusal or Close is final | none                                   |
 *
 * Rules:
 * - Time, randomness and sockets come from `ClientOptions`. Time is monotonic, never the time of day.
 * - The state is complete before an event is dispatched or a callback is called: both may call any method here.
 * - Every socket belongs to one generation. Messages and promises of an older generation are ignored.
 * - No promise that is created here is ever reported as an unhandled rejection.
 *
 * Source: protocols/client/v1/spec.md for the messages, and for when to reconnect after which code;
 * protocols/codes/passing.json for the reaction to each refusal, error and Close.
 */

/** @typedef {import('./wsgate.js').ClientOptions} ClientOptions */
/** @typedef {import('./wsgate.js').ClientState} ClientState */
/** @typedef {import('./wsgate.js').Publication} Publication */
/** @typedef {import('./wsgate.js').TokenSource} TokenSource */
/** @typedef {any} Message a message of the gateway: one JSON object */
/** @typedef {any} Timer the value that the given setTimeout returns */
/**
 * @typedef {{done: (answer: Message) => void, failed: (error: Error) => void}} Outcome callbacks of a request; at most
 * one is called, once
 */

const SUBPROTOCOL = 'wsgate.v1.json';
const BEARER = 'wsgate.bearer.';
const INBOX = '@me';
const ADDRESS = /^(ws|http)(s?):\/\/([^/?#\s][^?#]*)(\?[^#]*)?(?:#.*)?$/i;
const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const NO_TOKEN = 'the gateway requires a token, and this client has none';

/** The states that may follow each state. @type {Record<ClientState, ClientState[]>} */
const TRANSITIONS = {
  idle: ['connecting', 'waiting', 'closed'],
  connecting: ['open', 'waiting', 'idle', 'closed'],
  open: ['waiting', 'idle', 'closed'],
  waiting: ['connecting', 'idle', 'closed'],
  closed: [],
};

/**
 * Standard Close codes after which the client does not reconnect. After codes that the spec does not name (TLS,
 * proxies) it does.
 */
const LAST_CODES = new Set([1002, 1003, 1007, 1008, 1009, 1010]);
const CODE_NORMAL = 1000;
const CODE_TOKEN_EXPIRED = 4001;
const CODE_AUTH_TIMEOUT = 4002;
// Reasons of a 4001 after which the same token may be accepted
const TOKEN_STAYS_GOOD = /(?:key_awaited|not_yet_valid)$/;
const UNAUTHORIZED = 401;
const FORBIDDEN = 403;
const GAP_REASONS = new Set(['slow', 'bus', 'too_large']); // the gateway's reasons for a gap
const UNAUTHORIZED_LIMIT = 5; // 401 or 403 in a row, until a client with a token function ends
const PASSING_REJECTIONS = new Set([408, 425, 429]); // the other 4xx reject the request itself, which would be the same
const NOT_IMPLEMENTED = 501;
const CODES_WITHOUT_FRAME = [1005, 1006]; // codes that a socket reports if no Close has arrived, or one without a code

const OWN_PING_MS = 25_000; // ping interval for a gateway that sends no pings
const PONG_LIMIT_MS = 10_000; // the gateway gives its clients the same time
const WAKE_JITTER_MS = 500; // the pages of one network come online at the same moment
const STABLE_MS = 5_000; // a connection that lasted shorter does not reset the back-off
const OVERFLOW_EVENT_MS = 100; // least time between two overflow events of one channel
// Least time between two refreshes; `expires_s` is in whole seconds: 0 means any time below one second
const REFRESH_LEAST_MS = 1_000;
const WAIT_MOST_MS = 3_600_000; // the longest wait that a gateway can cause
const LIFE_MOST_MS = 100 * 365 * 24 * 3_600_000; // the longest life of a token
const PROBE_MS = 1_000; // a gateway that accepts anonymous clients has usually sent the welcome by then
const REFRESH_PART = { least: 0.75, more: 0.15 }; // fractions of the time until expiry: the rest is for further tries
const TIMER_MOST_MS = 2 ** 31 - 1; // setTimeout runs a longer delay at once

// --- errors ------------------------------------------------------------------------------------------

/** The base class of all errors that this module throws, apart from wrong arguments. */
export class WsgateError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = new.target.name;
  }
}

/**
 * The gateway refused a command: `code` and `error` are those of the spec, `retryMs` the requested delay if there is
 * one.
 */
export class CommandError extends WsgateError {
  /** @param {{code?: number, error?: string, message?: string, retry_ms?: number, ch?: string}} answer */
  constructor({ code = 0, error = '', message = '', retry_ms: retryMs, ch: channel }) {
    super(`${code} ${error}${message ? `: ${message}` : ''}`);
    this.code = code;
    this.error = error;
    this.retryMs = Number.isFinite(retryMs) ? retryTime(retryMs) : undefined;
    this.channel = channel;
  }

  /** Whether the same command may succeed later. */
  get isTemporary() {
    return this.retryMs !== undefined || this.code === 429 || (this.code >= 500 && this.code !== NOT_IMPLEMENTED);
  }
}

/** The reply did not arrive in time. Whether the command was carried out is unknown, unless it was never sent. */
export class CommandTimeoutError extends WsgateError {}

/** The connection was lost before the reply: whether the command was carried out is unknown. */
export class ConnectionLostError extends WsgateError {}

/** The client has ended: by close() (1000), or because of this Close code or HTTP status. */
export class ClientClosedError extends WsgateError {
  /** @param {number} code @param {string} reason @param {string} [detail] a text for people */
  constructor(code, reason, detail = '') {
    super(`closed: ${code} ${reason}`.trimEnd() + (detail ? `: ${detail}` : ''));
    this.code = code;
    this.reason = reason;
  }
}

/** A token function throws this when there will be no token: the client then ends and does not call it again. */
export class UnauthorizedError extends WsgateError {
  constructor(message = 'the token function has no token for this user any more') {
    super(message);
  }
}

// --- plain functions ---------------------------------------------------------------------------------

/** Whether to reconnect after a Close code. @param {number} code */
const comesBack = (code) => (code < 4500 || code > 4999) && !LAST_CODES.has(code);

/**
 * Limits a number of the gateway to the range from 0 to `most`; 0 for any other value. No value makes the client wait
 * without end.
 * @param {unknown} value @param {number} [unit] @param {number} [most]
 */
const quantity = (value, unit = 1, most = WAIT_MOST_MS) =>
  (Number.isFinite(value) ? Math.min(most, Math.max(0, Number(value) * unit)) : 0);

/** Limits the delay that a gateway requested, in milliseconds. @param {unknown} value */
const retryTime = (value) => quantity(value);

/**
 * Whether to reconnect after a handshake that was answered with this HTTP status. A gateway never answers 2xx or 3xx:
 * that is the login page of a network, or a page about maintenance.
 * @param {number} status
 */
const isPassingStatus = (status) =>
  PASSING_REJECTIONS.has(status) || (status !== NOT_IMPLEMENTED && (status < 400 || status >= 500));

/** Marks the rejection of a promise as handled, for callers that ignore it. @template T @param {Promise<T>} promise */
const heeded = (promise) => {
  promise.catch(() => {});
  return promise;
};

/**
 * Creates a promise together with the functions that settle it.
 * @returns {{promise: Promise<void>, resolve: () => void, reject: (error: Error|null) => void}}
 */
function deferred() {
  const made = /** @type {any} */ ({});
  made.promise = heeded(new Promise((resolve, reject) => Object.assign(made, { resolve, reject })));
  return made;
}

/** Parses `<epoch>-<offset>`; null for another text. Offsets may exceed 2^53. @param {string|undefined} text */
function parsePosition(text) {
  const match = /^([A-Za-z0-9]+)-(\d+)$/.exec(text ?? '');
  return match && { epoch: match[1], offset: BigInt(match[2]) };
}

/** Whether `position` is at or before `last` in the same epoch. @param {string} [position] @param {string} [last] */
function isSeen(position, last) {
  const [one, other] = [parsePosition(position), parsePosition(last)];
  return one !== null && other !== null && one.epoch === other.epoch && one.offset <= other.offset;
}

/** Returns a clock in milliseconds that never goes back; it uses the time of day if there is no `performance`. */
function monotonicClock() {
  const { performance } = globalThis;
  if (typeof performance?.now === 'function') return () => performance.now();
  let lastMs = 0;
  return () => (lastMs = Math.max(lastMs, Date.now()));
}

/** Decodes base64 to bytes: not every engine has `atob`. @param {string} text */
function fromBase64(text) {
  const letters = text.replace(/={1,2}$/, '');
  const bytes = new Uint8Array(Math.floor((letters.length * 3) / 4));
  let [held, heldBits, length] = [0, 0, 0];
  for (const letter of letters) {
    const value = BASE64.indexOf(letter);
    if (value < 0) throw new SyntaxError('the payload is not base64');
    held = ((held << 6) | value) & 0xffff;
    heldBits += 6;
    if (heldBits >= 8) {
      heldBits -= 8;
      bytes[length] = held >> heldBits;
      length += 1;
    }
  }
  return bytes;
}

/** Converts a `msg` message to a publication. @param {Message} message @returns {Publication} */
function toPublication({ ch, data, b64, pos, user, ts }) {
  const isBinary = b64 !== undefined;
  return {
    channel: ch,
    data: isBinary ? fromBase64(b64) : data,
    encoding: isBinary ? 'binary' : 'json',
    position: pos,
    user,
    timestampMs: ts,
  };
}

/**
 * Splits a URL into the parts that are needed to open a WebSocket. An absolute URL is split here, because the `URL` of
 * React Native changes the path and does not let its parts be set; `URL` is only used to reject an invalid one.
 * @param {string|URL} url
 */
function socketUrl(url) {
  const { URL, location } = globalThis;
  let text = String(url).trim();
  if (/^[a-z][a-z\d+.-]*:/i.test(text)) {
    if (typeof URL === 'function') new URL(text); // throws a TypeError if it is not valid
  } else if (typeof URL === 'function' && location?.href) {
    text = new URL(text, location.href).href;
  }
  const [, scheme, secure = '', rest, search = ''] = ADDRESS.exec(text) ?? [];
  if (scheme === undefined) throw new TypeError('not a WebSocket address: it must begin with ws:// or wss://');
  const address = `ws${secure.toLowerCase()}://${rest}`;
  return { address, search, shown: address.replace(/\/\/[^/]*@/, '//') };
}

/**
 * Checks the options that are numbers. `setTimeout` runs a delay that is not a number at once, so that the client would
 * connect again without a pause.
 * @param {Record<'firstMs'|'mostMs'|'connectTimeoutMs'|'commandTimeoutMs'|'queueLimit', unknown>} options
 */
function checkNumbers({ firstMs, mostMs, connectTimeoutMs, commandTimeoutMs, queueLimit }) {
  for (const [name, value] of Object.entries({ 'backoff.firstMs': firstMs, 'backoff.mostMs': mostMs })) {
    if (!Number.isFinite(value) || Number(value) < 0) throw new TypeError(`${name} must be a finite number from 0 on`);
  }
  for (const [name, value] of Object.entries({ connectTimeoutMs, commandTimeoutMs })) {
    if (typeof value !== 'number' || !(value > 0)) throw new TypeError(`${name} must be a number above 0`);
  }
  if (queueLimit !== Infinity && (!Number.isInteger(queueLimit) || Number(queueLimit) < 1)) {
    throw new TypeError('queueLimit must be a whole number from 1 on');
  }
}

/**
 * Checks that a token can be sent as a subprotocol. The error does not show the token.
 * @param {unknown} token
 * @param {boolean} isFixed whether the token is the same in every attempt, so that the error is final
 */
function checkToken(token, isFixed) {
  if (token !== undefined && token !== null && !(typeof token === 'string' && /^[\w.-]*$/.test(token))) {
    throw isFixed ? new UnauthorizedError('the token is not a JWT') : new WsgateError('the token is not a JWT');
  }
  return token ?? '';
}

// --- events: React Native has neither `Event` nor `EventTarget` --------------------------------------

/** An event with its own fields; `ClientEventMap` lists them. */
class ClientEvent {
  #type;
  #target;
  isStopped = false;

  /** @param {string} type @param {object} target @param {object} fields */
  constructor(type, target, fields) {
    this.#type = type;
    this.#target = target;
    Object.defineProperty(this, 'isStopped', { enumerable: false });
    Object.assign(this, fields);
  }

  get type() { return this.#type; }
  get target() { return this.#target; }
  get currentTarget() { return this.#target; }

  /** Ends the dispatch: no later listener is called. */
  stopImmediatePropagation() {
    this.isStopped = true;
  }
}

/** Implements the three methods of `EventTarget` for engines without one. */
class Emitter {
  /** @type {Map<string, {listener: any, isOnce: boolean, isRemoved: boolean}[]>} */ #listeners = new Map();
  /** @type {(error: unknown) => void} */ #rethrow;

  /** @param {(error: unknown) => void} rethrow receives the exceptions of listeners */
  constructor(rethrow) {
    this.#rethrow = rethrow;
  }

  /**
   * Adds a listener unless it is added already. The options capture and passive have no effect.
   * @param {string} type @param {any} listener @param {any} [options]
   */
  addEventListener(type, listener, options) {
    const { once = false, signal } = typeof options === 'object' && options !== null ? options : {};
    const found = this.#listeners.get(type) ?? [];
    if (!listener || signal?.aborted || found.some((each) => each.listener === listener)) return;
    this.#listeners.set(type, [...found, { listener, isOnce: Boolean(once), isRemoved: false }]);
    signal?.addEventListener('abort', () => this.removeEventListener(type, listener));
  }

  /** Removes a listener, also from a dispatch that runs. @param {string} type @param {any} listener */
  removeEventListener(type, listener) {
    const found = this.#listeners.get(type) ?? [];
    for (const each of found) if (each.listener === listener) each.isRemoved = true;
    this.#listeners.set(type, found.filter(({ isRemoved }) => !isRemoved));
  }

  /** Calls the listeners of the event's type in their order. @param {any} event */
  dispatchEvent(event) {
    // A listener that is added during the dispatch is not called.
    for (const each of this.#listeners.get(event.type) ?? []) {
      if (each.isRemoved || event.isStopped) continue;
      if (each.isOnce) this.removeEventListener(event.type, each.listener);
      try {
        typeof each.listener === 'function' ? each.listener.call(this, event) : each.listener.handleEvent(event);
      } catch (error) {
        this.#rethrow(error);
      }
    }
    return true;
  }
}

// --- one channel -------------------------------------------------------------------------------------

/** Passes the publications of a channel on: to a callback, or to iterators over a bounded queue. */
class PublicationQueue {
  /** @type {Publication[]} */ #items = [];
  /** @type {{resolve: (result: any) => void, reject: (error: Error) => void}[]} */ #readers = [];
  /** @type {{error: Error|null}|null} */ #end = null;
  /** @type {((publication: Publication) => unknown)|null} */ #callback = null;
  #limit;
  #report;

  /** @param {number} limit @param {(error: unknown) => void} report receives the exceptions of the callback */
  constructor(limit, report) {
    this.#limit = limit;
    this.#report = report;
  }

  get callback() { return this.#callback; }

  set callback(callback) {
    this.#callback = callback;
    while (this.#callback && this.#items.length > 0) {
      this.#call(/** @type {Publication} */ (this.#items.shift()));
    }
  }

  /** Passes one publication on; true if the oldest one was dropped for it. @param {Publication} publication */
  push(publication) {
    if (this.#callback) {
      this.#call(publication);
    } else if (this.#readers.length > 0) {
      this.#readers.shift()?.resolve({ value: publication, done: false });
    } else {
      this.#items.push(publication);
    }
    return this.#items.length > this.#limit && this.#items.shift() !== undefined;
  }

  /**
   * Ends the queue; queued publications can still be read.
   * @param {Error|null} error the error that iterators throw then
   */
  end(error) {
    this.#end = { error };
    for (const reader of this.#readers.splice(0)) this.next().then(reader.resolve, reader.reject);
  }

  /**
   * Returns the next publication, waiting for it if the queue is empty.
   * @returns {Promise<IteratorResult<Publication, undefined>>}
   */
  next() {
    const publication = this.#items.shift();
    if (publication) return Promise.resolve({ value: publication, done: false });
    if (this.#end?.error) return heeded(Promise.reject(this.#end.error));
    if (this.#end) return Promise.resolve({ value: undefined, done: true });
    return heeded(new Promise((resolve, reject) => this.#readers.push({ resolve, reject })));
  }

  /** Calls the callback and reports its exception. @param {Publication} publication */
  async #call(publication) {
    try {
      await this.#callback?.(publication);
    } catch (error) {
      this.#report(error);
    }
  }
}

/** The state of one subscribed channel: its position in the stream, and its subscription on this connection. */
class Channel {
  isHeld = false; // the gateway has confirmed it on this connection
  wasHeld = false; // it was confirmed on any connection
  isAsking = false; // a `sub` on this connection has no reply yet
  isEnded = false;
  attempt = 0; // how many `sub`s in a row were refused or lost
  unauthorizedCount = 0; // how many `sub`s in a row were refused with 401
  droppedCount = 0; // publications dropped by overflow since the last event about them
  /** @type {Timer} */ askTimer;
  /** @type {Timer} */ overflowTimer;
  ready = deferred();

  /**
   * @param {string} name
   * @param {TokenSource|undefined} token
   * @param {string|undefined} position
   * @param {PublicationQueue} queue
   */
  constructor(name, token, position, queue) {
    this.name = name;
    this.token = token;
    this.position = position;
    this.queue = queue;
    this.isRecovering = position !== undefined; // the publications after `position` are still to be recovered
  }

  /** Marks the channel as not subscribed, because the connection ended or the gateway unsubscribed it. */
  reset() {
    this.isHeld = this.isAsking = false;
    this.isRecovering = this.position !== undefined;
  }

  /**
   * Whether to deliver a publication: false if recovery will send it again, and if it was received before.
   * @param {string} [position]
   */
  take(position) {
    if (parsePosition(position) === null) return true; // no position: the channel has no history
    if (this.isRecovering || isSeen(position, this.position)) return false;
    this.position = position;
    return true;
  }

  /**
   * Marks the channel as subscribed. Returns a gap if publications since the last position may be missing.
   * @param {Message} answer
   */
  hold({ pos, recovered }) {
    if (this.isHeld) return null; // confirmed twice: the token lists the channel, and the client sent `sub` too
    const from = this.position;
    const isComplete = this.isRecovering ? recovered === true : !this.wasHeld;
    if (!isComplete) {
      this.position = pos;
    } else if (!this.isRecovering && pos !== undefined && !isSeen(pos, from)) {
      this.position = pos; // recovered publications follow and advance the position
    }
    this.isHeld = this.wasHeld = true;
    this.isRecovering = false;
    this.attempt = this.unauthorizedCount = 0;
    return isComplete ? null : { channel: this.name, reason: 'not_recovered', retryMs: 0, from, to: pos };
  }
}

/** A subscription as the application uses it; created by `Client.subscribe`. */
class Subscription {
  #channel;
  #unsubscribe;

  /** @param {Channel} channel @param {() => Promise<void>} unsubscribe */
  constructor(channel, unsubscribe) {
    this.#channel = channel;
    this.#unsubscribe = unsubscribe;
  }

  get channel() { return this.#channel.name; }
  get position() { return this.#channel.position; }
  get ready() { return this.#channel.ready.promise; }
  get onPublication() { return this.#channel.queue.callback; }

  set onPublication(callback) {
    this.#channel.queue.callback = callback;
  }

  unsubscribe() {
    return this.#unsubscribe();
  }

  /** Iterates over the publications. Leaving a loop keeps the subscription; another loop continues where it ended. */
  [Symbol.asyncIterator]() {
    return { next: () => this.#channel.queue.next() };
  }
}

// --- the client --------------------------------------------------------------------------------------

/** One connection to a gateway, which reconnects by itself. `wsgate.d.ts` describes each option and event. */
export class Client extends Emitter {
  /** The handler of each message. @type {Map<string, (client: Client, message: Message) => void>} */
  static #HANDLERS = new Map(Object.entries({
    welcome: (client, message) => client.#onWelcome(message),
    subbed: (client, message) => client.#settle(message.id, message) || client.#onSubbed(message),
    unsubbed: (client, message) => client.#onUnsubbed(message),
    msg: (client, message) => client.#onPublication(message),
    gap: (client, message) => client.#onGap(message),
    ok: (client, message) => client.#settle(message.id, message),
    pong: () => {}, // any message proves that the gateway responds
    err: (client, message) => client.#onError(message),
    bye: (client, message) => { client.#goodbye = message; },
    refresh: (client, message) => client.#onRefreshAsked(message),
    join: (client, { ch: channel, user, conn }) => client.#emit('join', { channel, user, conn }),
    leave: (client, { ch: channel, user, conn }) => client.#emit('leave', { channel, user, conn }),
  }));

  #url;
  #settings;
  /** @type {ClientState} */ #state = 'idle';
  /** @type {WebSocket|null} */ #socket = null;
  #generation = 0;
  #attempt = 0; // attempts since a connection lasted STABLE_MS
  #unauthorizedCount = 0; // handshakes in a row that were refused with 401 or 403
  #refusedStatus = 0; // the HTTP status of this attempt, if the WebSocket class reports it
  /** @type {Timer} */ #probeTimer; // connecting without a token: sends the probe
  /** @type {Message} */ #goodbye = null; // the `bye` of this connection
  #opened = deferred();
  #openedMs = 0;
  /** @type {ClientClosedError|null} */ #closedError = null;

  /** @type {Set<Timer>} */ #timers = new Set(); // all timers: none outlives the client
  /** @type {Timer} */ #phaseTimer; // connecting: its time limit; waiting: the next attempt
  #dueMs = 0; // waiting: time of the next attempt
  #notBeforeMs = 0; // waiting: time before which the gateway wants no attempt
  /** @type {Timer} */ #watchTimer;
  #pingMs = 0;
  #heardMs = 0;
  /** @type {Timer} */ #refreshTimer;
  #refreshDueMs = 0;
  #refreshedMs = -Infinity; // when the last refresh of this connection began
  #shownToken = ''; // the token that the gateway has accepted last on this connection
  #refreshAttempt = 0;
  #isRefreshAsked = false; // the gateway has requested a refresh that has not begun
  #askedDelayMs = 0;
  #isRefreshing = false; // a refresh is under way

  #lastId = 0;
  /** @type {Map<number, Outcome & {text: string, timer: Timer, isSent: boolean}>} */ #commands = new Map();
  /** @type {Map<string, Channel>} */ #channels = new Map();
  /**
   * Channels that the gateway subscribed because the token lists them, without a Subscription, and their positions.
   * @type {Map<string, string|undefined>}
   */
  #offered = new Map();

  /** Creates a client that is not connected. @param {string|URL} url @param {ClientOptions} [options] */
  constructor(url, options = {}) {
    // The exception of a listener is reported as an uncaught exception, and stops nothing here.
    super((error) =>
      globalThis.reportError ? globalThis.reportError(error) : this.#settings.setTimeout(() => { throw error; }, 0));
    this.#url = socketUrl(url);
    this.#settings = {
      token: options.token,
      WebSocket: options.WebSocket ?? globalThis.WebSocket,
      firstMs: options.backoff?.firstMs ?? 500,
      mostMs: options.backoff?.mostMs ?? 30_000,
      connectTimeoutMs: options.connectTimeoutMs ?? 15_000,
      commandTimeoutMs: options.commandTimeoutMs ?? 10_000,
      queueLimit: options.queueLimit ?? 1024,
      random: options.random ?? Math.random,
      now: options.now ?? monotonicClock(),
      setTimeout: options.setTimeout ?? globalThis.setTimeout,
      clearTimeout: options.clearTimeout ?? globalThis.clearTimeout,
    };
    checkNumbers(this.#settings);
    if (typeof this.#settings.WebSocket !== 'function') {
      throw new TypeError('there is no WebSocket class: pass one as the option WebSocket');
    }
  }

  get state() { return this.#state; }

  /**
   * Connects and stays connected. Resolves when open; rejects when the client ends, or disconnect() is called, before.
   */
  connect() {
    const { promise } = this.#opened; // taken before listeners run, because one of them may call disconnect()
    if (this.#state === 'idle') {
      globalThis.addEventListener?.('online', this.#onWake);
      globalThis.document?.addEventListener?.('visibilitychange', this.#onWake);
      const leftMs = this.#notBeforeMs - this.#settings.now();
      if (leftMs > 0) { // disconnect() was called during a delay that the gateway had requested
        this.#move('waiting');
        this.#wait(leftMs + this.#jitterMs(0));
        this.#emitState();
      } else {
        this.#try();
      }
    }
    return this.#closedError ? heeded(Promise.reject(this.#closedError)) : promise;
  }

  /**
   * Closes the connection for now, and keeps the subscriptions with their positions for a later connect(). Commands
   * that were sent reject; others wait for the next connection within their time limit.
   */
  disconnect() {
    if (this.#state === 'idle' || this.#state === 'closed') return;
    if (this.#state === 'open' && this.#settings.now() - this.#openedMs >= STABLE_MS) this.#attempt = 0;
    this.#move('idle');
    this.#unlisten();
    this.#drop();
    // Waiting commands keep their time limit. The timers of this connection, such as that of a token function, are
    // cancelled.
    const kept = [...this.#commands.values(), ...[...this.#channels.values()].map((each) => ({ timer: each.overflowTimer }))];
    const keptTimers = new Set(kept.map(({ timer }) => timer));
    for (const timer of [...this.#timers]) if (!keptTimers.has(timer)) this.#cancel(timer);
    const opened = this.#opened;
    this.#opened = deferred();
    opened.reject(new ConnectionLostError('disconnect() was called'));
    const generation = this.#generation;
    this.#emitState();
    if (generation !== this.#generation) return;
    this.#emit('close', { code: CODE_NORMAL, reason: 'by disconnect()', willReconnect: false, delayMs: 0 });
  }

  /** Ends the client: iterators end, waiting commands reject, no timer is left. */
  close() {
    if (this.#state !== 'closed') this.#finish(new ClientClosedError(CODE_NORMAL, 'by close()'), null);
  }

  /**
   * Subscribes to a channel, as soon as there is a connection and again on each later one.
   * @param {string} name
   * @param {{token?: TokenSource, from?: string}} [options] a channel token; the last position of the application
   */
  subscribe(name, { token, from } = {}) {
    if (this.#closedError) throw this.#closedError;
    if (typeof name !== 'string' || name === '') throw new TypeError('a channel must be a text that is not empty');
    if (this.#channels.has(name)) throw new WsgateError('this channel is subscribed already');
    const queue = new PublicationQueue(this.#settings.queueLimit, (error) => this.#report(error));
    const channel = new Channel(name, token, from ?? this.#offered.get(name), queue);
    this.#offered.delete(name);
    this.#channels.set(name, channel);
    this.#ask(channel);
    return new Subscription(channel, () => this.#unsubscribe(channel));
  }

  /** Subscribes to the inbox of the user, to which backends publish. */
  inbox({ from = /** @type {string|undefined} */ (undefined) } = {}) {
    return this.subscribe(INBOX, { from });
  }

  /**
   * Publishes a JSON value; resolves with its position.
   * @param {string} channel
   * @param {unknown} data
   * @param {{key?: string, echo?: boolean}} [options]
   */
  publish(channel, data, { key, echo } = {}) {
    const answered = this.#command({ op: 'pub', ch: channel, data, key, echo });
    return heeded(answered.then(({ pos }) => ({ position: pos })));
  }

  /** Sends a message to the backend; resolves when the bus has stored it as an event. @param {unknown} data */
  send(data) {
    return heeded(this.#command({ op: 'send', data }).then(() => undefined));
  }

  // --- connecting and disconnecting ---

  /** Begins an attempt: gets a token, then opens a socket. */
  #try() {
    this.#move('connecting');
    const generation = ++this.#generation;
    const isCurrent = () => generation === this.#generation;
    this.#askToken(this.#settings.token)
      .then((token) => isCurrent() && this.#open(token))
      .catch((error) => isCurrent() && this.#fail(error, 'connect_failed'));
    this.#emitState();
  }

  /** Opens a socket with this token. @param {string} token */
  #open(token) {
    let { search } = this.#url;
    const position = this.#channels.get(INBOX)?.position;
    if (position !== undefined) {
      // The gateway subscribes the inbox by itself, so the query is the only place for its position.
      search += `${search ? '&' : '?'}from=${encodeURIComponent(`${INBOX}:${position}`)}`;
    }
    const { WebSocket, connectTimeoutMs } = this.#settings;
    const { address, shown } = this.#url; // the query is not shown, because it may hold a token
    const protocols = token ? [SUBPROTOCOL, BEARER + token] : [SUBPROTOCOL];
    const socket = /** @type {WebSocket} */ (new WebSocket(address + search, protocols));
    this.#socket = socket;
    this.#shownToken = token;
    this.#phaseTimer = this.#after(connectTimeoutMs, () =>
      this.#fail(new WsgateError(`no welcome within ${connectTimeoutMs} ms`), 'connect_failed'));
    // The handlers stay on an abandoned socket: that of Node would throw an error without a listener.
    socket.onopen = () => socket === this.#socket && this.#probe();
    socket.onmessage = ({ data }) => socket === this.#socket && this.#onFrame(data);
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#lost(code, reason);
    socket.onerror = (event) => {
      if (socket !== this.#socket) return;
      const { message = '' } = /** @type {ErrorEvent} */ (event); // browsers give no cause, the package `ws` does
      this.#refusedStatus = Number(/^Unexpected server response: (\d{3})$/.exec(message)?.[1] ?? 0);
      this.#report(new WsgateError(`${shown}: ${message || 'the WebSocket failed'}`));
    };
  }

  /**
   * Starts a timer that sends a probe, if the client has no token and no welcome arrives. A gateway that requires a
   * token waits for `auth` without sending anything; it answers every command but `auth` and `ping` with 401. After a
   * welcome this `unsub` changes nothing.
   */
  #probe() {
    if (this.#hasToken || this.#state !== 'connecting') return;
    this.#cancel(this.#probeTimer);
    this.#probeTimer = this.#after(PROBE_MS, () => this.#socket?.send('{"op":"unsub","ch":"probe","id":0}'));
  }

  /** Whether there is a token that is the same in every attempt. */
  get #hasFixedToken() {
    const { token } = this.#settings;
    return typeof token === 'string' && token !== '' || (!token && /[?&]token=[^&]/.test(this.#url.search));
  }

  get #hasToken() { return typeof this.#settings.token === 'function' || this.#hasFixedToken; }

  /**
   * Returns the error that ends the client after this code, or null if it may reconnect.
   * @param {number} code a Close code, or the HTTP status of a refused handshake
   * @param {string} reason
   * @returns {ClientClosedError|null}
   */
  #finalError(code, reason) {
    const isUnauthorized = code === UNAUTHORIZED || code === FORBIDDEN; // another token may help
    this.#unauthorizedCount = isUnauthorized ? this.#unauthorizedCount + 1 : 0;
    const detail = this.#hasFixedToken ? 'the token of this client cannot change' : '';
    if (isUnauthorized) {
      const limit = typeof this.#settings.token === 'function' ? UNAUTHORIZED_LIMIT : 1;
      return this.#unauthorizedCount < limit ? null : new ClientClosedError(code, reason, detail);
    }
    if (code < CODE_NORMAL) return isPassingStatus(code) ? null : new ClientClosedError(code, reason);
    if (!comesBack(code)) return new ClientClosedError(code, reason);
    if (code === CODE_TOKEN_EXPIRED && detail && !TOKEN_STAYS_GOOD.test(reason)) {
      return new ClientClosedError(code, reason, detail);
    }
    return code === CODE_AUTH_TIMEOUT && !this.#hasToken ? new ClientClosedError(code, reason, NO_TOKEN) : null;
  }

  /** Moves to `open`: subscribes all channels and sends the waiting commands. @param {Message} welcome */
  #onWelcome({ ping_s: pingS, expires_s: expiresS, conn, user, node, bus }) {
    if (this.#state !== 'connecting') return;
    this.#move('open');
    this.#cancel(this.#phaseTimer);
    this.#cancel(this.#probeTimer);
    this.#openedMs = this.#settings.now();
    this.#pingMs = quantity(pingS, 1000) || OWN_PING_MS;
    this.#watch();
    this.#planRefresh(expiresS);
    for (const channel of this.#channels.values()) {
      if (channel.name !== INBOX || user === undefined) {
        // The gateway subscribes a user's inbox by itself, and refuses that of an anonymous client with an error.
        this.#ask(channel);
      }
    }
    for (const command of this.#commands.values()) this.#deliver(command);
    this.#opened.resolve();
    const generation = this.#generation;
    this.#emitState();
    if (generation === this.#generation) this.#emit('open', { conn, user, node, isBusAway: bus === false });
  }

  /** Reports an error and gives up this attempt or connection. @param {unknown} error @param {string} reason */
  #fail(error, reason) {
    if (error instanceof UnauthorizedError) {
      this.#finishWith(Object.assign(new ClientClosedError(UNAUTHORIZED, 'unauthorized', error.message), { cause: error }));
      return;
    }
    const generation = this.#generation;
    this.#report(error);
    if (generation === this.#generation) this.#lost(1006, reason);
  }

  /** Reports an error in an `error` event, then ends the client with it. @param {ClientClosedError} error */
  #finishWith(error) {
    const generation = this.#generation;
    this.#report(error);
    if (generation === this.#generation) this.#finish(error, error);
  }

  /**
   * Handles the end of an attempt or connection: waits for the next, or ends the client.
   * @param {number} socketCode
   * @param {string} text
   */
  #lost(socketCode, text) {
    const { now } = this.#settings;
    const goodbye = this.#goodbye;
    const code = goodbye && CODES_WITHOUT_FRAME.includes(socketCode) ? quantity(goodbye.code) : socketCode;
    const reason = text || goodbye?.reason || (this.#refusedStatus ? 'refused' : '');
    const error = this.#finalError(this.#refusedStatus || code, reason);
    if (error) {
      this.#finishWith(error);
      return;
    }
    if (this.#state === 'open') {
      if (now() - this.#openedMs >= STABLE_MS) this.#attempt = 0;
      this.#opened = deferred(); // connect() waits for the next welcome from now on
    }
    this.#move('waiting');
    this.#drop();
    const retryMs = retryTime(goodbye?.retry_ms);
    const delayMs = retryMs + this.#jitterMs(this.#attempt);
    this.#attempt += 1;
    this.#notBeforeMs = now() + retryMs;
    this.#wait(delayMs);
    const generation = this.#generation;
    this.#emitState();
    if (generation === this.#generation) this.#emit('close', { code, reason, willReconnect: true, delayMs });
  }

  /**
   * Moves to `closed` and releases everything.
   * @param {ClientClosedError} error
   * @param {Error|null} thrown the error that iterators throw; null: they end
   */
  #finish(error, thrown) {
    this.#move('closed');
    this.#closedError = error;
    this.#drop();
    this.#unlisten();
    for (const id of [...this.#commands.keys()]) this.#settle(id, error);
    for (const channel of [...this.#channels.values()]) this.#end(channel, thrown, error);
    for (const timer of [...this.#timers]) this.#cancel(timer);
    this.#opened.reject(error);
    this.#emitState();
    this.#emit('close', { code: error.code, reason: error.reason, willReconnect: false, delayMs: 0 });
  }

  #unlisten() {
    globalThis.removeEventListener?.('online', this.#onWake);
    globalThis.document?.removeEventListener?.('visibilitychange', this.#onWake);
  }

  /** Closes the socket, and resets all state of its connection. */
  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    this.#goodbye = null;
    this.#refusedStatus = 0;
    this.#generation += 1;
    [this.#phaseTimer, this.#probeTimer, this.#watchTimer, this.#refreshTimer].forEach((timer) => this.#cancel(timer));
    this.#refreshTimer = undefined;
    this.#refreshAttempt = 0;
    this.#refreshedMs = -Infinity;
    this.#isRefreshing = this.#isRefreshAsked = false;
    this.#offered.clear();
    for (const [id, command] of [...this.#commands]) {
      if (command.isSent) this.#settle(id, new ConnectionLostError('the connection was lost before the reply'));
    }
    for (const channel of this.#channels.values()) {
      this.#cancel(channel.askTimer);
      channel.reset();
    }
    try {
      socket?.close(CODE_NORMAL); // has no effect on a closed socket
    } catch (error) {
      this.#report(error);
    }
  }

  /** Sets the timer of the next attempt. @param {number} delayMs the time until then */
  #wait(delayMs) {
    this.#cancel(this.#phaseTimer);
    this.#dueMs = this.#settings.now() + delayMs;
    this.#phaseTimer = this.#after(delayMs, () => this.#try());
  }

  /** The page came online or became visible: an earlier attempt may succeed now. */
  #onWake = (/** @type {{type: string}} */ { type }) => {
    const isHidden = type === 'visibilitychange' && globalThis.document?.visibilityState === 'hidden';
    if (this.#state !== 'waiting' || isHidden) return;
    const nowMs = this.#settings.now();
    const delayMs = Math.max(0, this.#notBeforeMs - nowMs) + this.#settings.random() * WAKE_JITTER_MS;
    if (nowMs + delayMs < this.#dueMs) this.#wait(delayMs);
  };

  /** Changes the state; throws for a transition that is not listed. @param {ClientState} state */
  #move(state) {
    if (!TRANSITIONS[this.#state].includes(state)) {
      throw new Error(`impossible change of state: ${this.#state} to ${state}`);
    }
    this.#state = state;
  }

  // --- messages and commands ---

  /** Handles one message of the gateway. @param {unknown} data */
  #onFrame(data) {
    this.#heardMs = this.#settings.now();
    try {
      const message = JSON.parse(/** @type {string} */ (data));
      Client.#HANDLERS.get(message.op)?.(this, message); // unknown messages are of a newer gateway
    } catch (error) {
      this.#report(error instanceof SyntaxError ? new WsgateError('the gateway sent a message that is not JSON') : error);
    }
  }

  /** Sends a ping if the gateway was silent for too long: scripts cannot see the gateway's own pings. */
  #watch() {
    const { now } = this.#settings;
    this.#watchTimer = this.#after(Math.max(0, this.#heardMs + this.#pingMs - now()), () => {
      if (now() < this.#heardMs + this.#pingMs) {
        this.#watch(); // a message arrived meanwhile; so each message needs no timer
        return;
      }
      const heardMs = this.#heardMs;
      this.#socket?.send('{"op":"ping"}');
      this.#watchTimer = this.#after(PONG_LIMIT_MS, () =>
        this.#heardMs === heardMs
          ? this.#fail(new WsgateError(`silent for ${PONG_LIMIT_MS} ms after a ping`), 'heartbeat_timeout')
          : this.#watch());
    });
  }

  /**
   * Sends a command of the application; resolves with the reply.
   * @param {{op: string, ch?: string, data?: unknown, key?: string, echo?: boolean, token?: string}} message
   * @returns {Promise<Message>}
   */
  #command(message) {
    return new Promise((done, failed) => {
      if (this.#closedError) throw this.#closedError;
      if (this.#state !== 'open' && this.#commands.size >= this.#settings.queueLimit) {
        throw new WsgateError('too many commands wait for the connection');
      }
      const { data } = message;
      // Binary data needs the msgpack subprotocol.
      const isBinary = data instanceof ArrayBuffer || ArrayBuffer.isView(data);
      if ('data' in message && (isBinary || ['undefined', 'function', 'symbol'].includes(typeof data))) {
        throw new TypeError('data must be a JSON value');
      }
      this.#request(message, { done, failed });
    });
  }

  /**
   * Sends a request with a new id, at once or as soon as there is a connection.
   * @param {object} message
   * @param {Outcome} outcome called before the next message is handled
   */
  #request(message, outcome) {
    const id = (this.#lastId += 1);
    const text = JSON.stringify({ ...message, id });
    const { commandTimeoutMs } = this.#settings;
    const timer = this.#after(commandTimeoutMs, () =>
      this.#settle(id, new CommandTimeoutError(`no reply within ${commandTimeoutMs} ms`)));
    const command = { ...outcome, text, timer, isSent: false };
    this.#commands.set(id, command);
    if (this.#state === 'open') this.#deliver(command);
  }

  /** Sends a request unless it was sent before. @param {{text: string, isSent: boolean}} command */
  #deliver(command) {
    if (!command.isSent) {
      command.isSent = true;
      this.#socket?.send(command.text);
    }
  }

  /** Settles the request with this id; false if there is none. @param {number} id @param {Message|Error} result */
  #settle(id, result) {
    const command = this.#commands.get(id);
    if (command === undefined) return false;
    this.#commands.delete(id);
    this.#cancel(command.timer);
    result instanceof Error ? command.failed(result) : command.done(result);
    return true;
  }

  /** Handles an `err`: rejects its command, or reports it. @param {Message} message */
  #onError(message) {
    if (this.#state === 'connecting' && message.code === UNAUTHORIZED && !this.#hasToken) {
      this.#finishWith(new ClientClosedError(UNAUTHORIZED, 'unauthorized', NO_TOKEN));
      return;
    }
    const error = new CommandError(message);
    if (!this.#settle(message.id, error)) this.#report(error);
  }

  // --- channels ---

  /** Sends `sub` for a channel, if the client is open and the channel is not subscribed. @param {Channel} channel */
  async #ask(channel) {
    if (this.#state !== 'open' || channel.isAsking || channel.isHeld || channel.isEnded) return;
    channel.isAsking = true;
    const generation = this.#generation;
    const isCurrent = () => generation === this.#generation && !channel.isEnded;
    const failed = (/** @type {Error} */ error) => isCurrent() && this.#onRefused(channel, error);
    const done = (/** @type {Message} */ answer) => isCurrent() && this.#hold(channel, answer);
    try {
      // A fixed token needs no await, so that the `sub`s are sent in the order of subscribe().
      const token = typeof channel.token === 'function' ? await this.#askToken(channel.token) : channel.token;
      if (!isCurrent()) return;
      const from = channel.position;
      channel.isRecovering = from !== undefined;
      this.#request({ op: 'sub', ch: channel.name, token: token || undefined, from }, { done, failed });
    } catch (error) {
      failed(/** @type {Error} */ (error));
    }
  }

  /**
   * Marks a channel as subscribed, and reports a gap if there is one.
   * @param {Channel} channel
   * @param {Message} answer
   */
  #hold(channel, answer) {
    channel.isAsking = false;
    const gap = channel.hold(answer);
    channel.ready.resolve();
    if (gap) this.#emit('gap', gap);
  }

  /**
   * Handles a failed `sub`: sends it again later, or ends the subscription.
   * @param {Channel} channel
   * @param {Error} error
   */
  #onRefused(channel, error) {
    channel.isAsking = false;
    if (error instanceof CommandError && error.error === 'already_subscribed') {
      this.#hold(channel, {});
      return;
    }
    const isUnauthorized = error instanceof CommandError && error.code === UNAUTHORIZED;
    channel.unauthorizedCount += Number(isUnauthorized);
    // The token function may return a token that is accepted the next time.
    const mayRenew = typeof channel.token === 'function' && channel.unauthorizedCount < UNAUTHORIZED_LIMIT;
    const isForGood =
      error instanceof UnauthorizedError ||
      (error instanceof CommandError && !error.isTemporary && !(isUnauthorized && mayRenew));
    if (isForGood) {
      this.#end(channel, error);
    } else {
      this.#askLater(channel, error instanceof CommandError ? quantity(error.retryMs) : 0);
    }
    this.#report(error);
  }

  /** Sends `sub` again after at least this delay and a random time. @param {Channel} channel @param {number} leastMs */
  #askLater(channel, leastMs) {
    const delayMs = leastMs + this.#jitterMs(channel.attempt);
    channel.attempt += 1;
    this.#cancel(channel.askTimer);
    channel.askTimer = this.#after(delayMs, () => this.#ask(channel));
  }

  /** Handles a subscription that the gateway made without a `sub`. @param {Message} message */
  #onSubbed(message) {
    const channel = this.#channels.get(message.ch); // the token lists the channel
    if (channel === undefined) {
      this.#offered.set(message.ch, message.pos);
    } else if (channel.isRecovering && message.recovered === undefined) {
      this.#ask(channel); // the gateway does not know our position; until its reply no publication is delivered
    } else {
      this.#hold(channel, message);
    }
  }

  /** Handles the end of a subscription: the reply to `unsub`, or the gateway's decision. @param {Message} message */
  #onUnsubbed(message) {
    if (message.id !== undefined) {
      this.#settle(message.id, message);
      return;
    }
    this.#offered.delete(message.ch);
    const channel = this.#channels.get(message.ch);
    if (channel !== undefined && message.resubscribe) {
      channel.reset();
      this.#askLater(channel, 0);
    } else if (channel !== undefined) {
      const error = new CommandError({ ...message, error: message.reason });
      this.#end(channel, error);
      this.#report(error);
    }
  }

  /** Passes a publication to its channel, and counts a dropped one. @param {Message} message */
  #onPublication(message) {
    const channel = this.#channels.get(message.ch);
    const publication = channel && toPublication(message);
    if (channel && publication && channel.take(message.pos) && channel.queue.push(publication)) {
      channel.droppedCount += 1;
      if (channel.overflowTimer === undefined) this.#tellOverflow(channel);
    }
  }

  /** Dispatches an overflow event: the first at once, the following ones together. @param {Channel} channel */
  #tellOverflow(channel) {
    const droppedCount = channel.droppedCount;
    channel.overflowTimer = undefined;
    if (droppedCount > 0) {
      channel.droppedCount = 0;
      if (!channel.isEnded) {
        channel.overflowTimer = this.#after(OVERFLOW_EVENT_MS, () => this.#tellOverflow(channel));
      }
      this.#emit('gap', { channel: channel.name, reason: 'overflow', retryMs: 0, droppedCount });
    }
  }

  /** Dispatches the gateway's gap as an event. @param {Message} message */
  #onGap({ ch, from, to, reason, retry_ms: retryMs }) {
    const channel = this.#channels.get(ch);
    const isOfAll = ch === undefined && [...this.#channels.values()].some((each) => each.isHeld);
    if (channel === undefined && !isOfAll) return; // the channel was unsubscribed meanwhile, or none is subscribed yet
    channel?.take(to); // reported as lost, so recovery must not send them
    const known = GAP_REASONS.has(reason) ? reason : 'dropped';
    this.#emit('gap', { channel: ch, reason: known, retryMs: retryTime(retryMs), from, to });
  }

  /** Ends a subscription and sends `unsub`. @param {Channel} channel @returns {Promise<void>} */
  #unsubscribe(channel) {
    if (channel.isEnded) return Promise.resolve();
    this.#end(channel, null, new WsgateError('unsubscribed'));
    if (this.#state !== 'open') return Promise.resolve();
    return new Promise((resolve) => {
      this.#request({ op: 'unsub', ch: channel.name }, { done: () => resolve(), failed: () => resolve() });
    });
  }

  /**
   * Ends a subscription on the client's side.
   * @param {Channel} channel
   * @param {Error|null} thrown the error that its iterators throw; null: they end
   * @param {Error|null} [notReady] the error of its `ready`
   */
  #end(channel, thrown, notReady = thrown) {
    channel.isEnded = true;
    this.#channels.delete(channel.name);
    this.#cancel(channel.askTimer);
    this.#cancel(channel.overflowTimer);
    channel.queue.end(thrown);
    channel.ready.reject(notReady);
    this.#tellOverflow(channel);
  }

  // --- tokens ---

  /**
   * Returns a token, within the time limit for connecting; '' if there is none.
   * @param {TokenSource|undefined} source
   * @returns {Promise<string>}
   */
  #askToken(source) {
    const { connectTimeoutMs } = this.#settings;
    return new Promise((resolve, reject) => {
      const timer = this.#after(connectTimeoutMs, () =>
        reject(new WsgateError(`the token function returned nothing within ${connectTimeoutMs} ms`)));
      Promise.resolve()
        .then(typeof source === 'function' ? source : () => source)
        .then((token) => checkToken(token, typeof source !== 'function'))
        .then(resolve, reject)
        .finally(() => this.#cancel(timer));
    });
  }

  /** Schedules a refresh at a random moment before the token expires. @param {unknown} expiresS */
  #planRefresh(expiresS) {
    if (expiresS !== undefined) {
      const part = REFRESH_PART.least + REFRESH_PART.more * this.#settings.random();
      this.#scheduleRefresh(Math.max(REFRESH_LEAST_MS, quantity(expiresS, 1000, LIFE_MOST_MS) * part));
    }
  }

  /** Schedules a refresh that the gateway requested. @param {Message} message */
  #onRefreshAsked({ within_s: withinS }) {
    if (this.#hasFixedToken) {
      this.#report(new WsgateError('the gateway requested a fresh token, and the token of this client cannot change'));
    }
    this.#isRefreshAsked = true;
    this.#askedDelayMs = (this.#settings.random() * quantity(withinS, 1000)) / 2;
    if (!this.#isRefreshing) this.#scheduleRefresh(this.#askedDelayMs);
  }

  /** Schedules a refresh unless an earlier one is scheduled; at most one per second. @param {number} delayMs */
  #scheduleRefresh(delayMs) {
    const dueMs = Math.max(this.#settings.now() + delayMs, this.#refreshedMs + REFRESH_LEAST_MS);
    const isEarlier = this.#refreshTimer === undefined || dueMs < this.#refreshDueMs;
    if (typeof this.#settings.token === 'function' && isEarlier) {
      this.#cancel(this.#refreshTimer);
      this.#refreshDueMs = dueMs;
      this.#refreshTimer = this.#after(dueMs - this.#settings.now(), () => this.#onRefreshDue());
    }
  }

  /** Refreshes, or sets the timer again: a timer cannot last longer than 25 days. */
  #onRefreshDue() {
    this.#refreshTimer = undefined;
    const leftMs = this.#refreshDueMs - this.#settings.now();
    if (leftMs > TIMER_MOST_MS / 2) this.#scheduleRefresh(leftMs);
    else this.#refresh();
  }

  /** Sends a fresh token to the gateway; after a failure, tries again until the connection ends. */
  async #refresh() {
    this.#refreshTimer = undefined;
    this.#refreshedMs = this.#settings.now();
    this.#isRefreshing = true;
    const isAsked = this.#isRefreshAsked;
    this.#isRefreshAsked = false;
    const generation = this.#generation;
    const isCurrent = () => generation === this.#generation;
    try {
      const token = await this.#askToken(this.#settings.token);
      if (!isCurrent()) return;
      if (token === this.#shownToken && !isAsked && !this.#isRefreshAsked) {
        throw new WsgateError('the token function returned the token that is about to expire');
      }
      const answer = await this.#command({ op: 'refresh', token });
      if (!isCurrent()) return;
      this.#shownToken = token;
      this.#isRefreshing = false;
      this.#refreshAttempt = 0;
      this.#planRefresh(answer.expires_s);
      if (this.#isRefreshAsked) this.#scheduleRefresh(this.#askedDelayMs); // the gateway sent a request during the refresh
    } catch (error) {
      if (!isCurrent()) return;
      this.#isRefreshing = false;
      this.#isRefreshAsked ||= isAsked;
      if (error instanceof UnauthorizedError) {
        this.#fail(error, 'unauthorized');
        return;
      }
      this.#scheduleRefresh(this.#jitterMs(this.#refreshAttempt));
      this.#refreshAttempt += 1;
      this.#report(error);
    }
  }

  // --- timers and events ---

  /** Returns a delay with full jitter: between 0 and a limit that doubles with each attempt. @param {number} attempt */
  #jitterMs(attempt) {
    const { firstMs, mostMs, random } = this.#settings;
    return random() * Math.min(mostMs, firstMs * 2 ** attempt);
  }

  /**
   * Starts a timer that is cancelled with the client.
   * @param {number} delayMs
   * @param {() => void} run
   * @returns {Timer}
   */
  #after(delayMs, run) {
    const { setTimeout } = this.#settings; // browsers only accept it as a method of the window
    /** @type {Timer} */
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      run();
    }, Math.min(delayMs, TIMER_MOST_MS));
    this.#timers.add(timer);
    return timer;
  }

  /** Cancels a timer, if it is pending. @param {Timer} timer */
  #cancel(timer) {
    const { clearTimeout } = this.#settings;
    if (this.#timers.delete(timer)) clearTimeout(timer);
  }

  #emitState() { this.#emit('state', { state: this.#state }); }

  /** Dispatches an `error` event. @param {unknown} error */
  #report(error) { this.#emit('error', { error }); }

  /** Dispatches an event with these fields. @param {string} type @param {object} fields */
  #emit(type, fields) {
    this.dispatchEvent(new ClientEvent(type, this, fields));
  }
}
