/**
 * wsgate's client for browsers and Node: one connection that comes back by itself, and what is subscribed on it.
 *
 * One module, no build step, no dependencies; types are in wsgate.d.ts. It speaks `wsgate.v1` in JSON. Of the engine
 * it needs ES2022 with BigInt, `WebSocket`, `setTimeout` and `clearTimeout`. It uses `performance.now`, `URL`,
 * `location`, `document`, `reportError`, `addEventListener` and `removeEventListener` of the page where they are there.
 *
 *     const client = new Client('wss://push.example/ws', { token: () => fetchToken() });
 *     client.connect();
 *     for await (const publication of client.subscribe('chat:42')) show(publication.data);
 *
 * | state      | means                                                    | leaves to                                 |
 * |------------|----------------------------------------------------------|-------------------------------------------|
 * | idle       | not asked to connect, or let go by disconnect()          | connecting, waiting: connect(); closed    |
 * | connecting | asks for a token, opens a socket, waits for `welcome`    | open, waiting, idle, closed               |
 * | open       | welcome: commands are sent, channels are held            | waiting, idle, closed                     |
 * | waiting    | the last try or connection ended; the next has its time  | connecting, idle, closed                  |
 * | closed     | for good: close(), or a Close that says not to come back | nowhere                                   |
 *
 * Rules:
 * - Time, randomness and sockets come from outside (`ClientOptions`); time is monotonic, never of the day.
 * - State is complete before an event is dispatched or a callback called: either may call anything here.
 * - Every socket belongs to one generation; what an older one says, or a promise it started, is not heard.
 * - No promise made here is ever reported as unhandled.
 *
 * Source: protocols/client/v1/spec.md for the messages, for who comes back after which code and how soon;
 * protocols/codes/passing.json for what the client does after each refusal, error and Close.
 */

/** @typedef {import('./wsgate.js').ClientOptions} ClientOptions */
/** @typedef {import('./wsgate.js').ClientState} ClientState */
/** @typedef {import('./wsgate.js').Publication} Publication */
/** @typedef {import('./wsgate.js').TokenSource} TokenSource */
/** @typedef {any} Message what the server said: one JSON object */
/** @typedef {any} Timer what the given setTimeout gives */
/** @typedef {{done: (answer: Message) => void, failed: (error: Error) => void}} Outcome called at most once */

const SUBPROTOCOL = 'wsgate.v1.json';
const BEARER = 'wsgate.bearer.';
const INBOX = '@me';
const ADDRESS = /^(ws|http)(s?):\/\/([^/?#\s][^?#]*)(\?[^#]*)?(?:#.*)?$/i;
const BASE64 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
const NO_TOKEN = 'the gateway wants a token and this client has none';

/** Which state may follow which. @type {Record<ClientState, ClientState[]>} */
const TRANSITIONS = {
  idle: ['connecting', 'waiting', 'closed'],
  connecting: ['open', 'waiting', 'idle', 'closed'],
  open: ['waiting', 'idle', 'closed'],
  waiting: ['connecting', 'idle', 'closed'],
  closed: [],
};

/** Standard codes after which nobody comes back. Those that the spec does not name (TLS, proxies) do. */
const LAST_CODES = new Set([1002, 1003, 1007, 1008, 1009, 1010]);
const CODE_NORMAL = 1000;
const CODE_TOKEN_EXPIRED = 4001;
const CODE_AUTH_TIMEOUT = 4002;
const TOKEN_STAYS_GOOD = /(?:key_awaited|not_yet_valid)$/; // reasons of a 4001 after which the same token is accepted
const UNAUTHORIZED = 401;
const FORBIDDEN = 403;
const GAP_REASONS = new Set(['slow', 'bus', 'too_large']); // of a gap, as the server says
const UNAUTHORIZED_LIMIT = 5; // in a row, until a client gives up although its function gives new tokens
const PASSING_STATUSES = new Set([408, 425, 429]); // the other 4xx blame the request, which stays the same
const NOT_IMPLEMENTED = 501;
const CODES_WITHOUT_FRAME = [1005, 1006]; // what a socket says when no Close, or an empty one, has arrived

const OWN_PING_MS = 25_000; // where the server pings nobody
const PONG_LIMIT_MS = 10_000; // as the server gives its clients
const WAKE_JITTER_MS = 500; // pages of one network come online together
const STABLE_MS = 5_000; // a connection that lived shorter does not begin the back-off anew
const OVERFLOW_EVENT_MS = 100; // at most one event of a channel in so long
const REFRESH_LEAST_MS = 1_000; // between two refreshes; `expires_s` is whole seconds: 0 may be anything below one
const WAIT_MOST_MS = 3_600_000; // an absurd number of a server would otherwise be for ever
const LIFE_MOST_MS = 100 * 365 * 24 * 3_600_000; // of a token
const PROBE_MS = 1_000; // a gateway that lets anonymous clients in has welcomed them by then
const REFRESH_PART = { least: 0.75, more: 0.15 }; // of the time until expiry: time is left for more tries
const TIMER_MOST_MS = 2 ** 31 - 1; // above it setTimeout fires at once

// --- errors ------------------------------------------------------------------------------------------

/** What everything here throws and rejects with is one of. */
export class WsgateError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = new.target.name;
  }
}

/** The server said no to a command: `code` and `error` as the spec lists them, `retryMs` when it said when. */
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

/** No answer in time. Whether the command was done is unknown, unless it was never sent. */
export class CommandTimeoutError extends WsgateError {}

/** The connection was lost before the answer: whether the command was done is unknown. */
export class ConnectionLostError extends WsgateError {}

/** The client is closed for good: by close() (1000), or by the server with this code. */
export class ClientClosedError extends WsgateError {
  /** @param {number} code @param {string} reason @param {string} [detail] for people */
  constructor(code, reason, detail = '') {
    super(`closed: ${code} ${reason}`.trimEnd() + (detail ? `: ${detail}` : ''));
    this.code = code;
    this.reason = reason;
  }
}

/** A token function throws this to say that there will be no token: the client ends and does not ask again. */
export class UnauthorizedError extends WsgateError {
  constructor(message = 'the token function has no token any more') {
    super(message);
  }
}

// --- plain functions ---------------------------------------------------------------------------------

/** Whether to connect again after a close code. @param {number} code */
const comesBack = (code) => (code < 4500 || code > 4999) && !LAST_CODES.has(code);

/**
 * A number of the server as a quantity within bounds, 0 for anything else: nobody waits for ever because of one.
 * @param {unknown} value @param {number} [unit] @param {number} [most]
 */
const quantity = (value, unit = 1, most = WAIT_MOST_MS) =>
  (Number.isFinite(value) ? Math.min(most, Math.max(0, Number(value) * unit)) : 0);

/** The time a server asks for, within bounds. @param {unknown} value */
const retryTime = (value) => quantity(value);

/** Whether to connect again after a handshake that was answered with this status. @param {number} status */
const isPassingStatus = (status) => PASSING_STATUSES.has(status) || (status >= 500 && status !== NOT_IMPLEMENTED);

/** Handles a promise's rejection for those who do not look at it. @template T @param {Promise<T>} promise */
const heeded = (promise) => {
  promise.catch(() => {});
  return promise;
};

/**
 * A promise and what settles it.
 * @returns {{promise: Promise<void>, resolve: () => void, reject: (error: Error|null) => void}}
 */
function deferred() {
  const made = /** @type {any} */ ({});
  made.promise = heeded(new Promise((resolve, reject) => Object.assign(made, { resolve, reject })));
  return made;
}

/** `<epoch>-<offset>`, or null. Offsets may be beyond 2^53. @param {string|undefined} text */
function parsePosition(text) {
  const match = /^([A-Za-z0-9]+)-(\d+)$/.exec(text ?? '');
  return match && { epoch: match[1], offset: BigInt(match[2]) };
}

/** Whether `position` is at or before `last`; never across epochs. @param {string} [position] @param {string} [last] */
function isSeen(position, last) {
  const [one, other] = [parsePosition(position), parsePosition(last)];
  return one !== null && other !== null && one.epoch === other.epoch && one.offset <= other.offset;
}

/** Milliseconds that only go forward; without `performance` those of the day, which never go back here. */
function monotonicClock() {
  const { performance } = globalThis;
  if (typeof performance?.now === 'function') return () => performance.now();
  let lastMs = 0;
  return () => (lastMs = Math.max(lastMs, Date.now()));
}

/** The bytes that base64 stands for: not every engine has `atob`. @param {string} text */
function fromBase64(text) {
  const letters = text.replace(/={1,2}$/, '');
  const bytes = new Uint8Array(Math.floor((letters.length * 3) / 4));
  let [held, heldBits, length] = [0, 0, 0];
  for (const letter of letters) {
    const value = BASE64.indexOf(letter);
    if (value < 0) throw new SyntaxError('no base64');
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

/** @param {Message} message @returns {Publication} */
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
 * The address as WebSocket takes it, in parts. An absolute one is taken apart here, because the `URL` of React Native
 * changes its path and its parts cannot be set; `URL` may only refuse it.
 * @param {string|URL} url
 */
function socketUrl(url) {
  const { URL, location } = globalThis;
  let text = String(url).trim();
  if (/^[a-z][a-z\d+.-]*:/i.test(text)) {
    if (typeof URL === 'function') new URL(text); // throws a TypeError for nonsense
  } else if (typeof URL === 'function' && location?.href) {
    text = new URL(text, location.href).href;
  }
  const [, scheme, secure = '', rest, search = ''] = ADDRESS.exec(text) ?? [];
  if (scheme === undefined) throw new TypeError('no WebSocket address: it begins with ws:// or wss://');
  const address = `ws${secure.toLowerCase()}://${rest}`;
  return { address, search, shown: address.replace(/\/\/[^/]*@/, '//') };
}

/**
 * A token that can ride as a subprotocol; an error must not show it.
 * @param {unknown} token
 * @param {boolean} isFixed whether it is as wrong on every other try
 */
function checkToken(token, isFixed) {
  if (token !== undefined && token !== null && !(typeof token === 'string' && /^[\w.-]*$/.test(token))) {
    throw isFixed ? new UnauthorizedError('the token is no JWT') : new WsgateError('the token is no JWT');
  }
  return token ?? '';
}

// --- events: React Native has neither `Event` nor `EventTarget` --------------------------------------

/** An event with fields of its own; `ClientEventMap` says which. */
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

  /** No listener after this one is called. */
  stopImmediatePropagation() {
    this.isStopped = true;
  }
}

/** The three methods of `EventTarget`, and what they do where there is one. */
class Emitter {
  /** @type {Map<string, {listener: any, isOnce: boolean, isRemoved: boolean}[]>} */ #listeners = new Map();
  /** @type {(error: unknown) => void} */ #rethrow;

  /** @param {(error: unknown) => void} rethrow told what a listener throws */
  constructor(rethrow) {
    this.#rethrow = rethrow;
  }

  /**
   * A listener that is there already is not added twice; capture and passive mean nothing here.
   * @param {string} type @param {any} listener @param {any} [options]
   */
  addEventListener(type, listener, options) {
    const { once = false, signal } = typeof options === 'object' && options !== null ? options : {};
    const found = this.#listeners.get(type) ?? [];
    if (!listener || signal?.aborted || found.some((each) => each.listener === listener)) return;
    this.#listeners.set(type, [...found, { listener, isOnce: Boolean(once), isRemoved: false }]);
    signal?.addEventListener('abort', () => this.removeEventListener(type, listener));
  }

  /** @param {string} type @param {any} listener */
  removeEventListener(type, listener) {
    const found = this.#listeners.get(type) ?? [];
    for (const each of found) if (each.listener === listener) each.isRemoved = true;
    this.#listeners.set(type, found.filter(({ isRemoved }) => !isRemoved));
  }

  /** @param {any} event */
  dispatchEvent(event) {
    for (const each of this.#listeners.get(event.type) ?? []) { // who is added meanwhile is not called
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

/** Publications between the connection and who reads them: a callback, or iterators with a bounded queue. */
class PublicationQueue {
  /** @type {Publication[]} */ #items = [];
  /** @type {{resolve: (result: any) => void, reject: (error: Error) => void}[]} */ #readers = [];
  /** @type {{error: Error|null}|null} */ #end = null;
  /** @type {((publication: Publication) => unknown)|null} */ #callback = null;
  #limit;
  #report;

  /** @param {number} limit @param {(error: unknown) => void} report told what the callback throws */
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

  /** Whether an older one had to go for it. @param {Publication} publication */
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

  /** No more will come; what is there can still be read. @param {Error|null} error what iterators throw then */
  end(error) {
    this.#end = { error };
    for (const reader of this.#readers.splice(0)) this.next().then(reader.resolve, reader.reject);
  }

  /** @returns {Promise<IteratorResult<Publication, undefined>>} */
  next() {
    const publication = this.#items.shift();
    if (publication) return Promise.resolve({ value: publication, done: false });
    if (this.#end?.error) return heeded(Promise.reject(this.#end.error));
    if (this.#end) return Promise.resolve({ value: undefined, done: true });
    return heeded(new Promise((resolve, reject) => this.#readers.push({ resolve, reject })));
  }

  /** @param {Publication} publication */
  async #call(publication) {
    try {
      await this.#callback?.(publication);
    } catch (error) {
      this.#report(error);
    }
  }
}

/** What is known of one subscribed channel: where it stands in the stream, and what this connection has of it. */
class Channel {
  isHeld = false; // the server has said so on this connection
  wasHeld = false; // ever
  isAsking = false; // a `sub` of this connection is not answered
  isEnded = false;
  attempt = 0; // refused or lost `sub`s in a row
  unauthorizedCount = 0; // `sub`s in a row that were refused for their token
  droppedCount = 0; // by overflow, no event has said so
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
    this.isRecovering = position !== undefined; // what was missed since `position` is still to come
  }

  /** The connection is gone, or the server took the channel. */
  reset() {
    this.isHeld = this.isAsking = false;
    this.isRecovering = this.position !== undefined;
  }

  /**
   * Whether a publication is to be delivered: not what recovery will repeat, and not what was seen.
   * @param {string} [position]
   */
  take(position) {
    if (parsePosition(position) === null) return true; // live: published past the history, or there is none
    if (this.isRecovering || isSeen(position, this.position)) return false;
    this.position = position;
    return true;
  }

  /**
   * The server holds it now. Returns the gap if what came since the last time cannot be proven complete.
   * @param {Message} answer
   */
  hold({ pos, recovered }) {
    if (this.isHeld) return null; // told twice: it came with the token, and we had asked for it too
    const from = this.position;
    const isComplete = this.isRecovering ? recovered === true : !this.wasHeld;
    if (!isComplete) {
      this.position = pos;
    } else if (!this.isRecovering && pos !== undefined && !isSeen(pos, from)) {
      this.position = pos; // recovered publications follow, and move it themselves
    }
    this.isHeld = this.wasHeld = true;
    this.isRecovering = false;
    this.attempt = this.unauthorizedCount = 0;
    return isComplete ? null : { channel: this.name, reason: 'not_recovered', retryMs: 0, from, to: pos };
  }
}

/** What an application holds of a subscription; made by `Client.subscribe`. */
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

  /** Leaving a loop keeps the subscription: another one goes on where it ended. */
  [Symbol.asyncIterator]() {
    return { next: () => this.#channel.queue.next() };
  }
}

// --- the client --------------------------------------------------------------------------------------

/** One connection to a gateway. See `wsgate.d.ts` for what each option and event means. */
export class Client extends Emitter {
  /** What is done with each message. @type {Map<string, (client: Client, message: Message) => void>} */
  static #HANDLERS = new Map(Object.entries({
    welcome: (client, message) => client.#onWelcome(message),
    subbed: (client, message) => client.#settle(message.id, message) || client.#onSubbed(message),
    unsubbed: (client, message) => client.#onUnsubbed(message),
    msg: (client, message) => client.#onPublication(message),
    gap: (client, message) => client.#onGap(message),
    ok: (client, message) => client.#settle(message.id, message),
    pong: () => {}, // being heard is all that was asked
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
  #attempt = 0; // tries since a connection lasted
  #unauthorizedCount = 0; // handshakes in a row that were refused for their token
  #refusedStatus = 0; // the HTTP status of this try, where the WebSocket class tells it
  /** @type {Timer} */ #probeTimer; // connecting without a token: asks whether one is needed
  /** @type {Message} */ #goodbye = null; // the `bye` of this connection
  #opened = deferred();
  #openedMs = 0;
  /** @type {ClientClosedError|null} */ #closedError = null;

  /** @type {Set<Timer>} */ #timers = new Set(); // all of them: none outlives the client
  /** @type {Timer} */ #phaseTimer; // connecting: its deadline; waiting: the next try
  #dueMs = 0; // waiting: when the next try is
  #notBeforeMs = 0; // waiting: when the server allows it
  /** @type {Timer} */ #watchTimer;
  #pingMs = 0;
  #heardMs = 0;
  /** @type {Timer} */ #refreshTimer;
  #refreshDueMs = 0;
  #refreshedMs = -Infinity; // when the last refresh of this connection began
  #shownToken = ''; // the token that counts on this connection
  #refreshAttempt = 0;
  #isRefreshAsked = false; // by the gateway, and not begun yet
  #askedDelayMs = 0;
  #isRefreshing = false; // a fresh token is asked for or shown

  #lastId = 0;
  /** @type {Map<number, Outcome & {text: string, timer: Timer, isSent: boolean}>} */ #commands = new Map();
  /** @type {Map<string, Channel>} */ #channels = new Map();
  /**
   * Channels that came with this connection's token and that nobody here asked for, and where they stood.
   * @type {Map<string, string|undefined>}
   */
  #offered = new Map();

  /** @param {string|URL} url @param {ClientOptions} [options] */
  constructor(url, options = {}) {
    // An error of a listener is its owner's: it shows up as one that nobody has caught, and stops nothing here.
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
    if (typeof this.#settings.WebSocket !== 'function') {
      throw new TypeError('no WebSocket here: give one as an option');
    }
  }

  get state() { return this.#state; }

  /** Connect, and stay connected; resolves when open, rejects when closed for good or let go before. */
  connect() {
    const { promise } = this.#opened; // the one of this call: a listener may disconnect
    if (this.#state === 'idle') {
      globalThis.addEventListener?.('online', this.#onWake);
      globalThis.document?.addEventListener?.('visibilitychange', this.#onWake);
      const leftMs = this.#notBeforeMs - this.#settings.now();
      if (leftMs > 0) { // let go while it waited for as long as the server had asked
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
   * Let the connection go for a while, and keep the subscriptions with their positions: connect() goes on with them.
   * Commands that were sent reject; others wait for the next connection within their time.
   */
  disconnect() {
    if (this.#state === 'idle' || this.#state === 'closed') return;
    if (this.#state === 'open' && this.#settings.now() - this.#openedMs >= STABLE_MS) this.#attempt = 0;
    this.#move('idle');
    this.#unlisten();
    this.#drop();
    // What waits for a connection keeps its time limit; what worked for this one, such as a token function, has none.
    const kept = [...this.#commands.values(), ...[...this.#channels.values()].map((each) => ({ timer: each.overflowTimer }))];
    const keptTimers = new Set(kept.map(({ timer }) => timer));
    for (const timer of [...this.#timers]) if (!keptTimers.has(timer)) this.#cancel(timer);
    const opened = this.#opened;
    this.#opened = deferred();
    opened.reject(new ConnectionLostError('let go by disconnect()'));
    const generation = this.#generation;
    this.#emitState();
    if (generation !== this.#generation) return;
    this.#emit('close', { code: CODE_NORMAL, reason: 'by disconnect()', willReconnect: false, delayMs: 0 });
  }

  /** Close for good: iterators end, commands that wait reject, no timer is left. */
  close() {
    if (this.#state !== 'closed') this.#finish(new ClientClosedError(CODE_NORMAL, 'by close()'), null);
  }

  /**
   * Subscribe, as soon as there is a connection and again on each that follows.
   * @param {string} name
   * @param {{token?: TokenSource, from?: string}} [options] a channel token, and where the application stood
   */
  subscribe(name, { token, from } = {}) {
    if (this.#closedError) throw this.#closedError;
    if (typeof name !== 'string' || name === '') throw new TypeError('a channel is a text that is not empty');
    if (this.#channels.has(name)) throw new WsgateError('this channel is subscribed already');
    const queue = new PublicationQueue(this.#settings.queueLimit, (error) => this.#report(error));
    const channel = new Channel(name, token, from ?? this.#offered.get(name), queue);
    this.#offered.delete(name);
    this.#channels.set(name, channel);
    this.#ask(channel);
    return new Subscription(channel, () => this.#unsubscribe(channel));
  }

  /** The user's own channel, on which backends reach them. */
  inbox({ from = /** @type {string|undefined} */ (undefined) } = {}) {
    return this.subscribe(INBOX, { from });
  }

  /**
   * Publish a value of JSON; resolves with where it stands.
   * @param {string} channel
   * @param {unknown} data
   * @param {{key?: string, echo?: boolean}} [options]
   */
  publish(channel, data, { key, echo } = {}) {
    const answered = this.#command({ op: 'pub', ch: channel, data, key, echo });
    return heeded(answered.then(({ pos }) => ({ position: pos })));
  }

  /** Say something to the backend; resolves once its stream has it. @param {unknown} data */
  send(data) {
    return heeded(this.#command({ op: 'send', data }).then(() => undefined));
  }

  // --- coming and going ---

  /** Ask for a token, then open a socket. */
  #try() {
    this.#move('connecting');
    const generation = ++this.#generation;
    const isCurrent = () => generation === this.#generation;
    this.#askToken(this.#settings.token)
      .then((token) => isCurrent() && this.#open(token))
      .catch((error) => isCurrent() && this.#fail(error, 'connect_failed'));
    this.#emitState();
  }

  /** @param {string} token */
  #open(token) {
    let { search } = this.#url;
    const position = this.#channels.get(INBOX)?.position;
    if (position !== undefined) {
      // The server subscribes the inbox by itself: only here can it be told where we stood.
      search += `${search ? '&' : '?'}from=${encodeURIComponent(`${INBOX}:${position}`)}`;
    }
    const { WebSocket, connectTimeoutMs } = this.#settings;
    const { address, shown } = this.#url; // the query may hold a token, and is not shown
    const protocols = token ? [SUBPROTOCOL, BEARER + token] : [SUBPROTOCOL];
    const socket = /** @type {WebSocket} */ (new WebSocket(address + search, protocols));
    this.#socket = socket;
    this.#shownToken = token;
    this.#phaseTimer = this.#after(connectTimeoutMs, () =>
      this.#fail(new WsgateError(`no welcome within ${connectTimeoutMs} ms`), 'connect_failed'));
    // Handlers stay when the socket is given up: Node's would throw an error that nobody listens to.
    socket.onopen = () => socket === this.#socket && this.#probe();
    socket.onmessage = ({ data }) => socket === this.#socket && this.#onFrame(data);
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#lost(code, reason);
    socket.onerror = (event) => {
      if (socket !== this.#socket) return;
      const { message = '' } = /** @type {ErrorEvent} */ (event); // browsers tell no cause, the package `ws` does
      this.#refusedStatus = Number(/^Unexpected server response: (\d{3})$/.exec(message)?.[1] ?? 0);
      this.#report(new WsgateError(`${shown}: ${message || 'the WebSocket failed'}`));
    };
  }

  /**
   * Ask whether a token is needed, where there is none and no welcome comes: a gateway that wants one waits for `auth`
   * in silence. It answers every other command but `ping` with 401; after a welcome this `unsub` changes nothing.
   */
  #probe() {
    if (this.#hasToken || this.#state !== 'connecting') return;
    this.#cancel(this.#probeTimer);
    this.#probeTimer = this.#after(PROBE_MS, () => this.#socket?.send('{"op":"unsub","ch":"probe","id":0}'));
  }

  /** Whether there is a token that is the same on every try. */
  get #hasFixedToken() {
    const { token } = this.#settings;
    return typeof token === 'string' && token !== '' || (!token && /[?&]token=[^&]/.test(this.#url.search));
  }

  get #hasToken() { return typeof this.#settings.token === 'function' || this.#hasFixedToken; }

  /**
   * Why the end of a connection is the end of the client, if it is.
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

  /** @param {Message} welcome */
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
        this.#ask(channel); // a user's inbox comes by itself; without a user the server says what is wrong
      }
    }
    for (const command of this.#commands.values()) this.#deliver(command);
    this.#opened.resolve();
    const generation = this.#generation;
    this.#emitState();
    if (generation === this.#generation) this.#emit('open', { conn, user, node, isBusAway: bus === false });
  }

  /** Give this try or connection up. @param {unknown} error @param {string} reason */
  #fail(error, reason) {
    if (error instanceof UnauthorizedError) {
      this.#finishWith(Object.assign(new ClientClosedError(UNAUTHORIZED, 'unauthorized', error.message), { cause: error }));
      return;
    }
    const generation = this.#generation;
    this.#report(error);
    if (generation === this.#generation) this.#lost(1006, reason);
  }

  /** End the client, and say why in an `error` event first. @param {ClientClosedError} error */
  #finishWith(error) {
    const generation = this.#generation;
    this.#report(error);
    if (generation === this.#generation) this.#finish(error, error);
  }

  /** The try or the connection is over. @param {number} socketCode @param {string} text */
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
    if (this.#state === 'open' && now() - this.#openedMs >= STABLE_MS) this.#attempt = 0;
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

  /** The end. @param {ClientClosedError} error @param {Error|null} thrown what iterators throw; null: they just end */
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

  /** Forget the socket and all that was only true on it. */
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
      if (command.isSent) this.#settle(id, new ConnectionLostError('the connection was lost before the answer'));
    }
    for (const channel of this.#channels.values()) {
      this.#cancel(channel.askTimer);
      channel.reset();
    }
    try {
      socket?.close(CODE_NORMAL); // nothing when it is closed
    } catch (error) {
      this.#report(error);
    }
  }

  /** @param {number} delayMs until the next try */
  #wait(delayMs) {
    this.#cancel(this.#phaseTimer);
    this.#dueMs = this.#settings.now() + delayMs;
    this.#phaseTimer = this.#after(delayMs, () => this.#try());
  }

  /** The page came online, or into sight: what was hopeless may work now. */
  #onWake = (/** @type {{type: string}} */ { type }) => {
    const isHidden = type === 'visibilitychange' && globalThis.document?.visibilityState === 'hidden';
    if (this.#state !== 'waiting' || isHidden) return;
    const nowMs = this.#settings.now();
    const delayMs = Math.max(0, this.#notBeforeMs - nowMs) + this.#settings.random() * WAKE_JITTER_MS;
    if (nowMs + delayMs < this.#dueMs) this.#wait(delayMs);
  };

  /** @param {ClientState} state */
  #move(state) {
    if (!TRANSITIONS[this.#state].includes(state)) {
      throw new Error(`never: ${this.#state} to ${state}`);
    }
    this.#state = state;
  }

  // --- hearing and speaking ---

  /** @param {unknown} data */
  #onFrame(data) {
    this.#heardMs = this.#settings.now();
    try {
      const message = JSON.parse(/** @type {string} */ (data));
      Client.#HANDLERS.get(message.op)?.(this, message); // others are of a newer server
    } catch (error) {
      this.#report(error instanceof SyntaxError ? new WsgateError('the server said what is no JSON') : error);
    }
  }

  /** Ask for a pong when the server was silent too long: its own pings are not shown to scripts. */
  #watch() {
    const { now } = this.#settings;
    this.#watchTimer = this.#after(Math.max(0, this.#heardMs + this.#pingMs - now()), () => {
      if (now() < this.#heardMs + this.#pingMs) {
        this.#watch(); // heard meanwhile: no message costs a timer
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
   * A command and its answer.
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
      const isBinary = data instanceof ArrayBuffer || ArrayBuffer.isView(data); // needs the msgpack subprotocol
      if ('data' in message && (isBinary || ['undefined', 'function', 'symbol'].includes(typeof data))) {
        throw new TypeError('data is a value of JSON');
      }
      this.#request(message, { done, failed });
    });
  }

  /**
   * Say something that is answered, at once or as soon as there is a connection.
   * @param {object} message
   * @param {Outcome} outcome called before the next message is looked at
   */
  #request(message, outcome) {
    const id = (this.#lastId += 1);
    const text = JSON.stringify({ ...message, id });
    const { commandTimeoutMs } = this.#settings;
    const timer = this.#after(commandTimeoutMs, () =>
      this.#settle(id, new CommandTimeoutError(`no answer within ${commandTimeoutMs} ms`)));
    const command = { ...outcome, text, timer, isSent: false };
    this.#commands.set(id, command);
    if (this.#state === 'open') this.#deliver(command);
  }

  /** @param {{text: string, isSent: boolean}} command */
  #deliver(command) {
    if (!command.isSent) {
      command.isSent = true;
      this.#socket?.send(command.text);
    }
  }

  /** Whether a command waited for this. @param {number} id @param {Message|Error} result */
  #settle(id, result) {
    const command = this.#commands.get(id);
    if (command === undefined) return false;
    this.#commands.delete(id);
    this.#cancel(command.timer);
    result instanceof Error ? command.failed(result) : command.done(result);
    return true;
  }

  /** @param {Message} message */
  #onError(message) {
    if (this.#state === 'connecting' && message.code === UNAUTHORIZED && !this.#hasToken) {
      this.#finishWith(new ClientClosedError(UNAUTHORIZED, 'unauthorized', NO_TOKEN));
      return;
    }
    const error = new CommandError(message);
    if (!this.#settle(message.id, error)) this.#report(error);
  }

  // --- channels ---

  /** Ask the server for a channel, if there is a connection that does not have it. @param {Channel} channel */
  async #ask(channel) {
    if (this.#state !== 'open' || channel.isAsking || channel.isHeld || channel.isEnded) return;
    channel.isAsking = true;
    const generation = this.#generation;
    const isCurrent = () => generation === this.#generation && !channel.isEnded;
    const failed = (/** @type {Error} */ error) => isCurrent() && this.#onRefused(channel, error);
    const done = (/** @type {Message} */ answer) => isCurrent() && this.#hold(channel, answer);
    try {
      // A token that is at hand needs no turn of the loop: subscriptions are sent in their order.
      const token = typeof channel.token === 'function' ? await this.#askToken(channel.token) : channel.token;
      if (!isCurrent()) return;
      const from = channel.position;
      channel.isRecovering = from !== undefined;
      this.#request({ op: 'sub', ch: channel.name, token: token || undefined, from }, { done, failed });
    } catch (error) {
      failed(/** @type {Error} */ (error));
    }
  }

  /** @param {Channel} channel @param {Message} answer */
  #hold(channel, answer) {
    channel.isAsking = false;
    const gap = channel.hold(answer);
    channel.ready.resolve();
    if (gap) this.#emit('gap', gap);
  }

  /** A `sub` failed: again later, or never. @param {Channel} channel @param {Error} error */
  #onRefused(channel, error) {
    channel.isAsking = false;
    if (error instanceof CommandError && error.error === 'already_subscribed') {
      this.#hold(channel, {});
      return;
    }
    const isUnauthorized = error instanceof CommandError && error.code === UNAUTHORIZED;
    channel.unauthorizedCount += Number(isUnauthorized);
    // The function may give a better token the next time.
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

  /** @param {Channel} channel @param {number} leastMs */
  #askLater(channel, leastMs) {
    const delayMs = leastMs + this.#jitterMs(channel.attempt);
    channel.attempt += 1;
    this.#cancel(channel.askTimer);
    channel.askTimer = this.#after(delayMs, () => this.#ask(channel));
  }

  /** @param {Message} message */
  #onSubbed(message) {
    const channel = this.#channels.get(message.ch); // it came with the token
    if (channel === undefined) {
      this.#offered.set(message.ch, message.pos);
    } else if (channel.isRecovering && message.recovered === undefined) {
      this.#ask(channel); // the server does not know where we stood; until it does nothing counts as seen
    } else {
      this.#hold(channel, message);
    }
  }

  /** @param {Message} message */
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

  /** @param {Message} message */
  #onPublication(message) {
    const channel = this.#channels.get(message.ch);
    const publication = channel && toPublication(message);
    if (channel && publication && channel.take(message.pos) && channel.queue.push(publication)) {
      channel.droppedCount += 1;
      if (channel.overflowTimer === undefined) this.#tellOverflow(channel);
    }
  }

  /** The first at once, what follows soon together, and always after what it tells of. @param {Channel} channel */
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

  /** @param {Message} message */
  #onGap({ ch, from, to, reason, retry_ms: retryMs }) {
    const channel = this.#channels.get(ch);
    const isOfAll = ch === undefined && [...this.#channels.values()].some((each) => each.isHeld);
    if (channel === undefined && !isOfAll) return; // left meanwhile, or nothing was loaded yet
    channel?.take(to); // told as lost: not to be recovered later
    const known = GAP_REASONS.has(reason) ? reason : 'dropped';
    this.#emit('gap', { channel: ch, reason: known, retryMs: retryTime(retryMs), from, to });
  }

  /** @param {Channel} channel @returns {Promise<void>} */
  #unsubscribe(channel) {
    if (channel.isEnded) return Promise.resolve();
    this.#end(channel, null, new WsgateError('unsubscribed'));
    if (this.#state !== 'open') return Promise.resolve();
    return new Promise((resolve) => {
      this.#request({ op: 'unsub', ch: channel.name }, { done: () => resolve(), failed: () => resolve() });
    });
  }

  /**
   * The end of a subscription.
   * @param {Channel} channel
   * @param {Error|null} thrown by its iterators; null: they just end
   * @param {Error|null} [notReady]
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
   * A token, within the time for connecting; '' where there is none.
   * @param {TokenSource|undefined} source
   * @returns {Promise<string>}
   */
  #askToken(source) {
    const { connectTimeoutMs } = this.#settings;
    return new Promise((resolve, reject) => {
      const timer = this.#after(connectTimeoutMs, () =>
        reject(new WsgateError(`the token function gave nothing within ${connectTimeoutMs} ms`)));
      Promise.resolve()
        .then(typeof source === 'function' ? source : () => source)
        .then((token) => checkToken(token, typeof source !== 'function'))
        .then(resolve, reject)
        .finally(() => this.#cancel(timer));
    });
  }

  /** Refresh in time before the token expires. @param {unknown} expiresS */
  #planRefresh(expiresS) {
    if (expiresS !== undefined) {
      const part = REFRESH_PART.least + REFRESH_PART.more * this.#settings.random();
      this.#scheduleRefresh(Math.max(REFRESH_LEAST_MS, quantity(expiresS, 1000, LIFE_MOST_MS) * part));
    }
  }

  /** The gateway wants a fresh token. @param {Message} message */
  #onRefreshAsked({ within_s: withinS }) {
    if (this.#hasFixedToken) {
      this.#report(new WsgateError('the gateway wants a fresh token, and the token of this client cannot change'));
    }
    this.#isRefreshAsked = true;
    this.#askedDelayMs = (this.#settings.random() * quantity(withinS, 1000)) / 2;
    if (!this.#isRefreshing) this.#scheduleRefresh(this.#askedDelayMs);
  }

  /** Refresh then, unless it is to be done earlier already; at most once in a second. @param {number} delayMs */
  #scheduleRefresh(delayMs) {
    const dueMs = Math.max(this.#settings.now() + delayMs, this.#refreshedMs + REFRESH_LEAST_MS);
    const isEarlier = this.#refreshTimer === undefined || dueMs < this.#refreshDueMs;
    if (typeof this.#settings.token === 'function' && isEarlier) {
      this.#cancel(this.#refreshTimer);
      this.#refreshDueMs = dueMs;
      this.#refreshTimer = this.#after(dueMs - this.#settings.now(), () => this.#onRefreshDue());
    }
  }

  /** A timer lasts for 25 days at most: it may have to be set again. */
  #onRefreshDue() {
    this.#refreshTimer = undefined;
    const leftMs = this.#refreshDueMs - this.#settings.now();
    if (leftMs > TIMER_MOST_MS / 2) this.#scheduleRefresh(leftMs);
    else this.#refresh();
  }

  /** Show a fresh token; again later when that fails, until the server closes. */
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
        throw new WsgateError('the token function gave the token that is about to expire');
      }
      const answer = await this.#command({ op: 'refresh', token });
      if (!isCurrent()) return;
      this.#shownToken = token;
      this.#isRefreshing = false;
      this.#refreshAttempt = 0;
      this.#planRefresh(answer.expires_s);
      if (this.#isRefreshAsked) this.#scheduleRefresh(this.#askedDelayMs); // meanwhile
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

  /** Full jitter: anything between 0 and a ceiling that doubles. @param {number} attempt */
  #jitterMs(attempt) {
    const { firstMs, mostMs, random } = this.#settings;
    return random() * Math.min(mostMs, firstMs * 2 ** attempt);
  }

  /** @param {number} delayMs @param {() => void} run @returns {Timer} */
  #after(delayMs, run) {
    const { setTimeout } = this.#settings; // browsers refuse it as a method of anything but the window
    /** @type {Timer} */
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      run();
    }, Math.min(delayMs, TIMER_MOST_MS));
    this.#timers.add(timer);
    return timer;
  }

  /** @param {Timer} timer */
  #cancel(timer) {
    const { clearTimeout } = this.#settings;
    if (this.#timers.delete(timer)) clearTimeout(timer);
  }

  #emitState() { this.#emit('state', { state: this.#state }); }

  /** @param {unknown} error */
  #report(error) { this.#emit('error', { error }); }

  /** @param {string} type @param {object} fields */
  #emit(type, fields) {
    this.dispatchEvent(new ClientEvent(type, this, fields));
  }
}
