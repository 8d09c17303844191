// The client as an application in TypeScript uses it: compiled by tests/integration/test_client_js.py, never run.
// `@ts-expect-error` marks what must not compile.
import {
  Client,
  ClientClosedError,
  CommandError,
  CommandTimeoutError,
  ConnectionLostError,
  UnauthorizedError,
  WsgateError,
  type ClientState,
  type Publication,
  type Subscription,
} from './wsgate.js';
import * as implementation from './implementation.js';

// What the module does is what its types say.
const told: typeof import('./wsgate.js') = implementation;
void told;

interface Chat {
  text: string;
}

async function use(): Promise<void> {
  const client = new Client(new URL('wss://a.example/ws'), {
    token: async () => 'a.b.c',
    WebSocket,
    backoff: { firstMs: 100 },
    connectTimeoutMs: 1,
    commandTimeoutMs: 1,
    queueLimit: 1,
    random: Math.random,
    now: () => performance.now(),
    setTimeout,
    clearTimeout,
  });
  client.addEventListener('state', ({ state }) => {
    const shown: ClientState = state;
    void shown;
  });
  client.addEventListener('gap', (event) => {
    const reason: 'slow' | 'bus' | 'too_large' | 'dropped' | 'not_recovered' | 'overflow' = event.reason;
    const retryMs: number = event.retryMs;
    const channel: string | undefined = event.channel;
    const count: number | undefined = event.droppedCount;
    void [reason, count, retryMs, channel, event.from, event.to];
  });
  client.addEventListener('close', ({ code, reason, willReconnect, delayMs }) => void [code, reason, willReconnect, delayMs]);
  client.addEventListener('open', ({ conn, user, node, isBusAway }) => void [conn, user, node, isBusAway], { once: true });
  client.addEventListener('error', { handleEvent: ({ error }) => void error });
  client.addEventListener('join', ({ channel, user, conn }) => void [channel, user, conn]);
  client.removeEventListener('leave', null);
  await client.connect();
  client.disconnect();
  // @ts-expect-error it takes nothing
  client.disconnect(1);
  client.addEventListener('state', (event) => void [event.type === 'state', event.target === client], { once: true });
  client.addEventListener('close', () => {}, { signal: new AbortController().signal });
  new Client('ws://a.example/ws', { token: () => { throw new UnauthorizedError('the user has logged out'); } });

  const chat: Subscription<Chat> = client.subscribe<Chat>('chat:42', { token: 'x', from: 'Qz-5' });
  chat.onPublication = (publication: Publication<Chat>) => publication.data.text;
  chat.onPublication = null;
  await chat.ready;
  for await (const { data, encoding, position, user, timestampMs, channel } of chat) {
    const text: string = data.text;
    void [text, encoding === 'binary', position?.length, user, timestampMs, channel];
  }
  await chat.unsubscribe();
  for await (const { data } of client.inbox({ from: 'Qz-5' })) void data;

  try {
    const { position } = await client.publish('chat:42', { text: '' }, { key: 'k', echo: false });
    void position?.length;
    const nothing: void = await client.send(null);
    void nothing;
  } catch (error) {
    if (error instanceof CommandError) void [error.code, error.error, error.retryMs?.toFixed(), error.channel];
    if (error instanceof ClientClosedError) void [error.code, error.reason];
    void [error instanceof CommandTimeoutError, error instanceof ConnectionLostError, error instanceof WsgateError];
  }
  client.close();

  // @ts-expect-error there is no such option
  new Client('', { tokens: '' });
  // @ts-expect-error a state is read
  client.state = 'open';
  // @ts-expect-error a position is read
  chat.position = '';
  // @ts-expect-error data is needed
  void client.publish('chat:42');
  // @ts-expect-error no such state
  void (client.state === 'gone');
}
void use;
