/** Types of wsgate.js: the client for browsers and Node. Source: protocols/client/v1/spec.md. */

/**
 * A JWT, or a function that gives one: it is called before every try to connect and ahead of expiry. Nothing or '' is
 * anonymous. A function that throws UnauthorizedError ends the client; whatever else it throws is a failed try. With a
 * text, the client ends when the gateway says that the token has expired or is not valid: the text cannot change.
 */
export type TokenSource = string | (() => string | null | undefined | Promise<string | null | undefined>);

/**
 * `idle`: made, or let go by `disconnect()`; `connecting`: until the server says welcome; `open`; `waiting`: comes back by itself; `closed`: for
 * good, by `close()` or by a Close that says so.
 */
export type ClientState = 'idle' | 'connecting' | 'open' | 'waiting' | 'closed';

/** What the client needs of a WebSocket class: that of browsers, of Node 22, or of the package `ws`. */
export interface WebSocketConstructor {
  new (url: string, protocols: string[]): any;
}

export interface ClientOptions {
  /** Who you are; without one you are anonymous. A function is asked again whenever a fresh token is needed. */
  token?: TokenSource;
  /** Default: `globalThis.WebSocket`. Where there is none (Node 20), the class of the package `ws`. */
  WebSocket?: WebSocketConstructor;
  /** The wait before try n is random between 0 and `min(mostMs, firstMs * 2^n)`. Default: 500 and 30,000. */
  backoff?: { firstMs?: number; mostMs?: number };
  /** For the token function, and for a socket until it is welcome. Default: 15,000. */
  connectTimeoutMs?: number;
  /** For the answer to a command, waiting for a connection included. Default: 10,000. */
  commandTimeoutMs?: number;
  /**
   * How many publications of one channel wait for its iterator before the oldest go, and how many commands wait for
   * a connection before more are refused. Default: 1,024.
   */
  queueLimit?: number;
  /** Between 0 and 1. Default: `Math.random`. */
  random?: () => number;
  /** Milliseconds of a monotonic clock. Default: `performance.now`, and `Date.now` where there is none. */
  now?: () => number;
  setTimeout?: (run: () => void, delayMs: number) => any;
  clearTimeout?: (timer: any) => void;
}

/** One item published to a channel. */
export interface Publication<Data = any> {
  /** `@me` for your inbox. */
  readonly channel: string;
  /** A value of JSON (integers beyond 2^53 are rounded); a Uint8Array when `encoding` is `binary`. */
  readonly data: Data;
  readonly encoding: 'json' | 'binary';
  /** `<epoch>-<offset>`, where the channel has history. */
  readonly position: string | undefined;
  /** Who published it; undefined: a backend. */
  readonly user: string | undefined;
  /** Unix time, as the publisher says. */
  readonly timestampMs: number | undefined;
}

export interface SubscribeOptions {
  /** A channel token, where the channel needs one. After a 401 a function is asked again, a text is not. */
  token?: TokenSource;
  /** Where you stood, as an earlier `position` said: what was published since comes first. */
  from?: string;
}

/**
 * One subscribed channel, through all connections. Read it with `for await`, or set `onPublication`.
 *
 * Leaving a loop does not unsubscribe. Iterators end after `unsubscribe()` and `client.close()`, and throw when the
 * server took the channel or closed for good, after what had come before.
 */
export interface Subscription<Data = any> extends AsyncIterable<Publication<Data>, undefined> {
  readonly channel: string;
  /** Of the last publication: keep it to go on there with `from`. Undefined where the channel has no history. */
  readonly position: string | undefined;
  /** Resolves when the server first confirms it; rejects when it never will. */
  readonly ready: Promise<void>;
  /** Called with each publication, at once with those that wait; while it is set, iterators get nothing. */
  onPublication: ((publication: Publication<Data>) => unknown) | null;
  /** Resolves when the server knows, or there is no connection; never rejects. */
  unsubscribe(): Promise<void>;
  [Symbol.asyncIterator](): AsyncIterator<Publication<Data>, undefined>;
}

export interface PublishOptions {
  /** Makes a retry harmless where the channel has history. */
  key?: string;
  /** false: not back to this connection. */
  echo?: boolean;
}

/** What every event has, as an `Event` of the DOM has it; the client needs no engine with a DOM. */
export interface ClientEvent<Type extends keyof ClientEventMap = keyof ClientEventMap> {
  readonly type: Type;
  readonly target: Client;
  readonly currentTarget: Client;
  /** No listener after this one is called. */
  stopImmediatePropagation(): void;
}

/** The client is connected and welcome. */
export interface OpenEvent extends ClientEvent<'open'> {
  /** The connection's public id. */
  readonly conn: string;
  /** Undefined: anonymous. */
  readonly user: string | undefined;
  readonly node: string;
  /** Channels follow when the bus is back. */
  readonly isBusAway: boolean;
}

/** A connection, or a try to make one, ended. */
export interface CloseEvent extends ClientEvent<'close'> {
  /** 1006 where no Close was received, a failed try included. */
  readonly code: number;
  readonly reason: string;
  readonly willReconnect: boolean;
  /** How long until then. */
  readonly delayMs: number;
}

/** Something failed: a try to connect, the token function, a subscription, a callback of yours. */
export interface ErrorEvent extends ClientEvent<'error'> {
  /** A WsgateError, or what your own function threw. */
  readonly error: any;
}

/**
 * Publications are missing, here in the stream: load the state anew, after `retryMs`. Another gap that comes during this
 * time needs no further load: what will be loaded is newer.
 */
export interface GapEvent extends ClientEvent<'gap'> {
  /** Undefined: perhaps every channel of this client. There is one event for all of them. */
  readonly channel: string | undefined;
  /**
   * `slow`: the server dropped some, you read too slowly or too much was published at once. `bus`: the server did not
   * receive from the bus for a while. `too_large`: a publication was larger than the channel allows. `dropped`: the
   * server dropped some for another reason. `not_recovered`: what was published while you were away could not be
   * proven complete; after each reconnect so on a channel without history. `overflow`: nobody took them here,
   * `droppedCount` went.
   */
  readonly reason: 'slow' | 'bus' | 'too_large' | 'dropped' | 'not_recovered' | 'overflow';
  /**
   * How long to wait before the state is loaded, at most an hour. The server gives every client another time, so that
   * they do not all load at once.
   */
  readonly retryMs: number;
  /** Positions, where they are known. */
  readonly from?: string;
  readonly to?: string;
  readonly droppedCount?: number;
}

export interface StateEvent extends ClientEvent<'state'> {
  readonly state: ClientState;
}

/** Somebody came into a channel, or left it. */
export interface PresenceEvent extends ClientEvent<'join' | 'leave'> {
  readonly channel: string;
  /** Undefined: anonymous. */
  readonly user: string | undefined;
  readonly conn: string;
}

export interface ClientEventMap {
  open: OpenEvent;
  close: CloseEvent;
  error: ErrorEvent;
  gap: GapEvent;
  state: StateEvent;
  join: PresenceEvent;
  leave: PresenceEvent;
}

/** What `addEventListener` takes. */
export type ClientListener<E> = ((event: E) => unknown) | { handleEvent(event: E): unknown } | null;

export interface ClientListenerOptions {
  once?: boolean;
  /** Removes the listener when it aborts. */
  signal?: { readonly aborted: boolean; addEventListener(type: 'abort', listener: () => void): void };
  /** These two mean nothing here. */
  capture?: boolean;
  passive?: boolean;
}

/**
 * One connection to a gateway, which comes back by itself until it is closed for good. It has the three methods of
 * `EventTarget` and needs neither `EventTarget` nor `Event`.
 */
export class Client {
  /**
   * @param url `wss://host/ws`; in a page also relative to it, `http` counts as `ws`.
   * @throws TypeError No such address, or no WebSocket class.
   */
  constructor(url: string | URL, options?: ClientOptions);

  readonly state: ClientState;

  /**
   * Connect, and stay connected; also after `disconnect()`. A second call changes nothing.
   *
   * @returns Resolves when the client is open; rejects with ClientClosedError when it is closed for good before, and
   * with ConnectionLostError when it is let go before.
   */
  connect(): Promise<void>;

  /**
   * Let the connection go for a while, and keep the subscriptions with their positions: `connect()` goes on with them.
   * Commands that were sent reject with ConnectionLostError; others wait for the next connection within their time.
   */
  disconnect(): void;

  /** Close for good: subscriptions end, commands that wait reject, no timer is left. */
  close(): void;

  /**
   * Subscribe, as soon as there is a connection and again on each that follows.
   *
   * @throws WsgateError The channel is subscribed already, or the client is closed.
   */
  subscribe<Data = any>(channel: string, options?: SubscribeOptions): Subscription<Data>;

  /** Your own channel, `@me`, on which backends reach you. */
  inbox<Data = any>(options?: { from?: string }): Subscription<Data>;

  /**
   * Publish a value of JSON. Waits for a connection within `commandTimeoutMs`.
   *
   * @returns Where it stands, on a channel with history. Rejects with CommandError when the server says no; with
   * CommandTimeoutError or ConnectionLostError when it is unknown whether it was published.
   */
  publish(channel: string, data: unknown, options?: PublishOptions): Promise<{ position: string | undefined }>;

  /** Say something to the backend; resolves once its stream has it. Rejects as `publish` does. */
  send(data: unknown): Promise<void>;

  addEventListener<K extends keyof ClientEventMap>(
    type: K,
    listener: ClientListener<ClientEventMap[K]>,
    options?: boolean | ClientListenerOptions,
  ): void;
  removeEventListener<K extends keyof ClientEventMap>(
    type: K,
    listener: ClientListener<ClientEventMap[K]>,
    options?: boolean | ClientListenerOptions,
  ): void;
  dispatchEvent(event: { readonly type: string }): boolean;
}

/** What everything here throws and rejects with, wrong arguments (TypeError) aside. */
export class WsgateError extends Error {
  constructor(message: string);
}

/** The server said no. */
export class CommandError extends WsgateError {
  constructor(answer: { code?: number; error?: string; message?: string; retry_ms?: number; ch?: string });
  /** Whether the same command may succeed later. */
  readonly isTemporary: boolean;
  /** As HTTP numbers them. */
  readonly code: number;
  /** The stable name to compare, such as `permission_denied`. */
  readonly error: string;
  /** How long to wait at least before trying again, an hour at most, if the server said so. */
  readonly retryMs: number | undefined;
  readonly channel: string | undefined;
}

/** No answer in time. Whether the command was done is unknown, unless there was no connection. */
export class CommandTimeoutError extends WsgateError {}

/** The connection was lost before the answer: whether the command was done is unknown. */
export class ConnectionLostError extends WsgateError {}

/**
 * The client is closed for good: by `close()` (1000), by the server with this Close code, or because a handshake was
 * refused with this HTTP status, where the WebSocket class tells it. 401: there is no token that the gateway accepts.
 */
export class ClientClosedError extends WsgateError {
  constructor(code: number, reason: string, detail?: string);
  readonly code: number;
  readonly reason: string;
}

/** A token function throws this to say that there will be no token any more: the user has logged out, for example. */
export class UnauthorizedError extends WsgateError {
  constructor(message?: string);
}
