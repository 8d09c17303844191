/** Types of wsgate.js, the client for browsers and Node. Source: protocols/client/v1/spec.md. */

/**
 * A JWT, or a function that returns one: it is called before every attempt to connect and before the token expires.
 * Without a token, or with '', the client is anonymous. A function that throws UnauthorizedError ends the client; any
 * other exception is a failed attempt. With a text, the client ends when the gateway reports that the token has expired
 * or is not valid, because the text cannot change.
 */
export type TokenSource = string | (() => string | null | undefined | Promise<string | null | undefined>);

/**
 * The state of a client. `idle`: not started, or `disconnect()` was called. `connecting`: until the gateway's welcome.
 * `open`: commands are sent. `waiting`: until the next attempt. `closed`: ended by `close()`, by a final Close or by a
 * final refusal.
 */
export type ClientState = 'idle' | 'connecting' | 'open' | 'waiting' | 'closed';

/** A WebSocket class that the client can use: that of browsers, of Node 22, or of the package `ws`. */
export interface WebSocketConstructor {
  new (url: string, protocols: string[]): any;
}

export interface ClientOptions {
  /** The user's token; without one the client is anonymous. A function is called whenever a fresh token is needed. */
  token?: TokenSource;
  /** Default: `globalThis.WebSocket`. Node 20 has none: pass the class of the package `ws`. */
  WebSocket?: WebSocketConstructor;
  /** The delay before attempt n is random between 0 and `min(mostMs, firstMs * 2^n)`. Default: 500 and 30,000. */
  backoff?: { firstMs?: number; mostMs?: number };
  /** Time limit of the token function, and of a socket until its welcome. Default: 15,000. */
  connectTimeoutMs?: number;
  /** Time limit of a command until its reply; waiting for a connection counts. Default: 10,000. */
  commandTimeoutMs?: number;
  /**
   * How many publications of one channel wait for its iterator before the oldest are dropped, and how many commands
   * wait for a connection before more are refused. Default: 1,024.
   */
  queueLimit?: number;
  /** Returns numbers between 0 and 1. Default: `Math.random`. */
  random?: () => number;
  /** Returns milliseconds of a monotonic clock. Default: `performance.now`, or `Date.now` if there is none. */
  now?: () => number;
  setTimeout?: (run: () => void, delayMs: number) => any;
  clearTimeout?: (timer: any) => void;
}

/** One item that was published to a channel. */
export interface Publication<Data = any> {
  /** The name of the channel; `@me` is the user's inbox. */
  readonly channel: string;
  /** A JSON value (integers beyond 2^53 are rounded), or a Uint8Array if `encoding` is `binary`. */
  readonly data: Data;
  readonly encoding: 'json' | 'binary';
  /** `<epoch>-<offset>`, if the channel has history. */
  readonly position: string | undefined;
  /** The user who published it; undefined for a backend. */
  readonly user: string | undefined;
  /** Unix time in milliseconds, as the publisher set it. */
  readonly timestampMs: number | undefined;
}

export interface SubscribeOptions {
  /** A channel token, if the channel needs one. After a 401 a function is called again; a text is not sent again. */
  token?: TokenSource;
  /** An earlier `position` of the application: what was published after it is recovered first. */
  from?: string;
}

/**
 * One subscribed channel, across all connections. Read it with `for await`, or set `onPublication`.
 *
 * Leaving a loop does not unsubscribe. Iterators end after `unsubscribe()` and `client.close()`. They throw if the
 * gateway ended the subscription or the client finally, after the queued publications.
 */
export interface Subscription<Data = any> extends AsyncIterable<Publication<Data>, undefined> {
  readonly channel: string;
  /**
   * The position of the last publication; pass it as `from` to continue there. Undefined if the channel has no history.
   */
  readonly position: string | undefined;
  /** Resolves when the gateway first confirms the channel; rejects when the subscription ends before. */
  readonly ready: Promise<void>;
  /** Called with each publication, first with the queued ones. While it is set, iterators receive nothing. */
  onPublication: ((publication: Publication<Data>) => unknown) | null;
  /** Ends the subscription. Resolves after the gateway's reply, or at once without a connection; never rejects. */
  unsubscribe(): Promise<void>;
  [Symbol.asyncIterator](): AsyncIterator<Publication<Data>, undefined>;
}

export interface PublishOptions {
  /** An idempotency key: a second publication with the same key has no effect, if the channel has history. */
  key?: string;
  /** If false, this connection does not receive the publication. */
  echo?: boolean;
}

/** The fields of every event, with the meaning of an `Event` of the DOM. The client does not need a DOM. */
export interface ClientEvent<Type extends keyof ClientEventMap = keyof ClientEventMap> {
  readonly type: Type;
  readonly target: Client;
  readonly currentTarget: Client;
  /** Ends the dispatch: no later listener is called. */
  stopImmediatePropagation(): void;
}

/** The client is connected and has received the welcome. */
export interface OpenEvent extends ClientEvent<'open'> {
  /** The public id of the connection. */
  readonly conn: string;
  /** The user of the token; undefined for an anonymous client. */
  readonly user: string | undefined;
  readonly node: string;
  /** Whether the gateway has no connection to its bus now; channels are confirmed when it has one again. */
  readonly isBusAway: boolean;
}

/** A connection, or an attempt to connect, has ended. */
export interface CloseEvent extends ClientEvent<'close'> {
  /** The Close code; 1006 if no Close arrived or the attempt failed. */
  readonly code: number;
  readonly reason: string;
  readonly willReconnect: boolean;
  /** The time until the next attempt in milliseconds. */
  readonly delayMs: number;
}

/** An error: of an attempt to connect, the token function, a subscription, or a callback of the application. */
export interface ErrorEvent extends ClientEvent<'error'> {
  /** A WsgateError, or the exception of a function of the application. */
  readonly error: any;
}

/**
 * Publications are missing: load the state again after `retryMs`. A second gap during this wait needs no second load,
 * because the load that follows is newer than both.
 */
export interface GapEvent extends ClientEvent<'gap'> {
  /**
   * The channel; undefined if publications may be missing on every channel of this client. Then there is one event for
   * all.
   */
  readonly channel: string | undefined;
  /**
   * `slow`: the gateway dropped publications, because this connection read too slowly or too much was published at
   * once. `bus`: the gateway's connection to the bus was interrupted. `too_large`: a publication was larger than the
   * channel allows. `dropped`: the gateway dropped publications for another reason. `not_recovered`: the client was
   * disconnected, and the gateway could not recover what was published meanwhile; on a channel without history this
   * follows every reconnect. `overflow`: the application was too slow, and `droppedCount` publications were dropped
   * here.
   */
  readonly reason: 'slow' | 'bus' | 'too_large' | 'dropped' | 'not_recovered' | 'overflow';
  /**
   * The milliseconds to wait before the state is loaded, at most an hour. The gateway gives every client a different
   * time, so that they do not all load at once.
   */
  readonly retryMs: number;
  /** The last position before the gap, if known. */
  readonly from?: string;
  readonly to?: string;
  readonly droppedCount?: number;
}

export interface StateEvent extends ClientEvent<'state'> {
  readonly state: ClientState;
}

/** A connection has entered a channel, or has left it. */
export interface PresenceEvent extends ClientEvent<'join' | 'leave'> {
  readonly channel: string;
  /** The user of that connection; undefined if it is anonymous. */
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

/** A listener as `addEventListener` accepts it. */
export type ClientListener<E> = ((event: E) => unknown) | { handleEvent(event: E): unknown } | null;

export interface ClientListenerOptions {
  once?: boolean;
  /** Removes the listener when the signal aborts. */
  signal?: { readonly aborted: boolean; addEventListener(type: 'abort', listener: () => void): void };
  /** `capture` and `passive` have no effect. */
  capture?: boolean;
  passive?: boolean;
}

/**
 * One connection to a gateway, which reconnects by itself until the client is closed. It has the three methods of
 * `EventTarget`, and requires neither `EventTarget` nor `Event`.
 */
export class Client {
  /**
   * Creates a client that is not connected.
   *
   * @param url `wss://host/ws`; in a page it may be relative to the page. `http` counts as `ws`.
   * @throws TypeError The URL is not valid, there is no WebSocket class, or an option is out of its range.
   */
  constructor(url: string | URL, options?: ClientOptions);

  readonly state: ClientState;

  /**
   * Connects, and stays connected. Also used after `disconnect()`. A second call changes nothing.
   *
   * @returns Resolves when the client is open: at once if it is, and with the next welcome while it reconnects. Rejects with ClientClosedError if the client ends before, and with
   * ConnectionLostError if `disconnect()` is called before.
   */
  connect(): Promise<void>;

  /**
   * Closes the connection for now, and keeps the subscriptions with their positions for a later `connect()`. Commands
   * that were sent reject with ConnectionLostError; others wait for the next connection within their time limit.
   */
  disconnect(): void;

  /** Ends the client: subscriptions end, waiting commands reject, no timer is left. */
  close(): void;

  /**
   * Subscribes to a channel, as soon as there is a connection and again on each later one.
   *
   * @throws WsgateError The channel is subscribed already, or the client is closed.
   */
  subscribe<Data = any>(channel: string, options?: SubscribeOptions): Subscription<Data>;

  /** Subscribes to the user's inbox, `@me`, to which backends publish. */
  inbox<Data = any>(options?: { from?: string }): Subscription<Data>;

  /**
   * Publishes a JSON value. Waits for a connection within `commandTimeoutMs`.
   *
   * @returns The position, if the channel has history. Rejects with CommandError if the gateway refuses; with
   * CommandTimeoutError or ConnectionLostError if it is unknown whether the value was published.
   */
  publish(channel: string, data: unknown, options?: PublishOptions): Promise<{ position: string | undefined }>;

  /** Sends a message to the backend; resolves when the bus has stored it as an event. Rejects as `publish` does. */
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

/** The base class of all errors of this module, apart from TypeError for wrong arguments. */
export class WsgateError extends Error {
  constructor(message: string);
}

/** The gateway refused a command. */
export class CommandError extends WsgateError {
  constructor(answer: { code?: number; error?: string; message?: string; retry_ms?: number; ch?: string });
  /** Whether the same command may succeed later. */
  readonly isTemporary: boolean;
  /** The number of the error, with the meaning of an HTTP status. */
  readonly code: number;
  /** The name of the error for comparisons, such as `permission_denied`. */
  readonly error: string;
  /** The least time to wait before another try, if the gateway requested one; at most an hour. */
  readonly retryMs: number | undefined;
  readonly channel: string | undefined;
}

/** The reply did not arrive in time. Whether the command was carried out is unknown, unless there was no connection. */
export class CommandTimeoutError extends WsgateError {}

/** The connection was lost before the reply: whether the command was carried out is unknown. */
export class ConnectionLostError extends WsgateError {}

/**
 * The client has ended: by `close()` (1000), by this Close code of the gateway, or because a handshake was refused with
 * this HTTP status, if the WebSocket class reports it. 401: there is no token that the gateway accepts.
 */
export class ClientClosedError extends WsgateError {
  constructor(code: number, reason: string, detail?: string);
  readonly code: number;
  readonly reason: string;
}

/** A token function throws this when there will be no token any more: the user has logged out, for example. */
export class UnauthorizedError extends WsgateError {
  constructor(message?: string);
}
