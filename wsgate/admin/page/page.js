// The try page: it opens one connection with the dialect wsgate.v1.json, and shows every frame of it.
//
// Data from the network is added to the page only as text, never as HTML.
// Source: protocols/client/v1/spec.md, for the messages and the close codes after which a client reconnects.

const LOG_ROWS = 500;
const SHOWN_SIGNS = 4000; // the most characters of a frame that are shown
const ONE_LINE_SIGNS = 110; // the most characters of a frame that is shown on one line
const BACKOFF_FIRST_MS = 500;
const BACKOFF_MOST_MS = 30_000;
const STABLE_MS = 5_000; // a connection that lasted shorter does not reset the back-off
const STANDARD_COMES_BACK = new Set([1000, 1001, 1005, 1006, 1011, 1012, 1013]);
const STANDARD_REASONS = {
  1000: "closed", 1001: "going away", 1002: "protocol error", 1005: "no code", 1006: "connection lost or refused",
  1009: "message too big", 1011: "server error", 1012: "restart", 1013: "try again later",
};

const element = (id) => document.getElementById(id);

// --- the connection ----------------------------------------------------------------------------------

let url = "";
let socket = null;
let isWanted = true; // false: the user of the page has disconnected
let attempts = 0; // attempts since a connection lasted STABLE_MS
let welcomedMs = null; // when the first welcome of this connection arrived
let reconnectTimer = 0;
let goodbye = null; // the message `bye` that came before a Close frame
let number = 0; // the last command id
const asked = new Map(); // command id to the command, until its reply arrives
const wanted = new Set(); // channels to subscribe to again after a reconnect
const live = new Set(); // channels whose subscription the server has confirmed
const counts = { sent: 0, received: 0, publications: 0, reconnects: 0 };

/** Whether the page reconnects after this close code. */
function comesBack(code) {
  return code >= 4000 ? code < 4500 : STANDARD_COMES_BACK.has(code);
}

/** The delay before a reconnect: the time that the server sent, and a random time, so that clients spread. */
function delayMs() {
  const ceiling = Math.min(BACKOFF_MOST_MS, BACKOFF_FIRST_MS * 2 ** attempts);
  return Math.round((goodbye?.retry_ms ?? 0) + Math.random() * ceiling);
}

/** Open a connection now, without a delay. */
function connect() {
  clearTimeout(reconnectTimer);
  isWanted = true;
  goodbye = null;
  welcomedMs = null;
  show("connecting", "Connecting");
  note("connect", url);
  const opened = new WebSocket(url, ["wsgate.v1.json"]);
  socket = opened;
  opened.onopen = () => opened === socket && onOpen();
  opened.onmessage = (event) => opened === socket && onFrame(event.data);
  opened.onclose = (event) => opened === socket && onClose(event.code, event.reason);
}

/** Close the connection, or stop reconnecting. */
function disconnect() {
  isWanted = false;
  clearTimeout(reconnectTimer);
  if (socket && socket.readyState <= WebSocket.OPEN) {
    socket.close(1000);
  } else {
    show("closed", "Not connected");
  }
}

/** Close the connection and open another one at once, without waiting for the close handshake. */
function reconnect() {
  const old = socket;
  socket = null;
  forget();
  old?.close(1000);
  attempts = 0;
  connect();
}

/** Clear the state of a connection that has ended. */
function forget() {
  live.clear();
  asked.clear();
  element("conn").textContent = "–";
  element("user").textContent = "–";
  drawSubscriptions();
}

function onOpen() {
  show("connecting", "Connected, waiting for welcome");
  const token = element("token").value.trim();
  if (token) {
    send({ op: "auth", token }, JSON.stringify({ op: "auth", token: "…" }));
  }
}

function onClose(code, text) {
  forget();
  const reason = text || goodbye?.reason || STANDARD_REASONS[code] || "";
  const what = `Closed ${code} ${reason}`.trim();
  note("closed", what);
  if (!isWanted) {
    show("closed", what);
  } else if (!comesBack(code)) {
    show("stopped", `${what}, no reconnect after this code`);
  } else {
    if (welcomedMs !== null && performance.now() - welcomedMs >= STABLE_MS) {
      attempts = 0;
    }
    const wait = delayMs();
    attempts += 1;
    show("waiting", `${what}, next try in ${(wait / 1000).toFixed(1)} s`);
    reconnectTimer = setTimeout(() => {
      counts.reconnects += 1;
      connect();
    }, wait);
  }
}

/** Send a message. The log shows `shown` in its place if it contains a secret. */
function send(message, shown) {
  if (socket?.readyState !== WebSocket.OPEN) {
    fault("Not connected.");
    return;
  }
  const text = typeof message === "string" ? message : JSON.stringify(message);
  socket.send(text);
  counts.sent += 1;
  log("out", opOf(shown ?? text), shown ?? text);
}

/** Register a command until its reply arrives, and return its new id. */
function ask(op, ch) {
  number += 1;
  asked.set(number, { op, ch, since: performance.now() });
  return number;
}

function subscribe(ch) {
  wanted.add(ch);
  drawSubscriptions();
  send({ op: "sub", ch, id: ask("sub", ch) });
}

function unsubscribe(ch) {
  wanted.delete(ch);
  drawSubscriptions();
  if (socket?.readyState === WebSocket.OPEN) {
    send({ op: "unsub", ch, id: ask("unsub", ch) });
  }
}

// --- messages of the server --------------------------------------------------------------------------

/** Log a frame, match it to its command, and call the handler of its op. */
function onFrame(text) {
  counts.received += 1;
  if (typeof text !== "string") {
    log("in", "binary", `${text.size} bytes`);
    return;
  }
  log("in", opOf(text), text);
  let message;
  try {
    message = JSON.parse(text);
  } catch {
    return;
  }
  const was = asked.get(message.id);
  if (was) {
    asked.delete(message.id);
    element("last-answer").textContent = `${(performance.now() - was.since).toFixed(1)} ms`;
  }
  HANDLERS[message.op]?.(message, was);
}

const HANDLERS = {
  welcome(message) {
    welcomedMs ??= performance.now(); // the welcome of the user may follow an anonymous one
    element("conn").textContent = message.conn ?? "–";
    element("user").textContent = message.user ?? "anonymous";
    show("open", message.bus === false ? "Open, but the bus is not connected" : "Open");
    fault("");
    if (element("token").value.trim() && !message.user) {
      return; // an anonymous welcome; the welcome of the user follows after the token
    }
    for (const ch of wanted) {
      if (!live.has(ch)) {
        subscribe(ch);
      }
    }
  },
  subbed(message) {
    live.add(message.ch);
    drawSubscriptions();
  },
  unsubbed(message) {
    live.delete(message.ch);
    if (message.resubscribe) {
      subscribe(message.ch);
    } else {
      wanted.delete(message.ch);
    }
    drawSubscriptions();
  },
  msg() {
    counts.publications += 1;
  },
  err(message, was) {
    const where = message.ch ?? was?.ch;
    fault(`${where ? `${where}: ` : ""}${message.code} ${message.error}, ${message.message}`);
    if (was?.op === "sub") {
      onNotSubscribed(message, was.ch);
    }
  },
  bye(message) {
    goodbye = message;
  },
};

/** Handle an error to `sub`: retry later if the error has a time for it. */
function onNotSubscribed(message, ch) {
  if (message.error === "already_subscribed") {
    live.add(ch);
  } else if (message.retry_ms === undefined) {
    wanted.delete(ch);
  } else {
    const opened = socket;
    setTimeout(() => {
      if (opened === socket && socket.readyState === WebSocket.OPEN && wanted.has(ch) && !live.has(ch)) {
        subscribe(ch);
      }
    }, message.retry_ms * (1 + Math.random()));
  }
  drawSubscriptions();
}

// --- state on the page -------------------------------------------------------------------------------

// The text of the button in each state. In any other state it connects.
const BUTTONS = { open: "Disconnect", connecting: "Disconnect", waiting: "Stop trying" };

function show(state, text) {
  element("state").dataset.state = state;
  element("state-text").textContent = text;
  element("connect").textContent = BUTTONS[state] ?? "Connect";
  for (const id of ["subscribe", "unsubscribe", "publish"]) {
    element(id).disabled = state !== "open";
  }
}

function fault(text) {
  element("fault").textContent = text;
}

function drawSubscriptions() {
  const names = [...new Set([...live, ...wanted])].sort();
  element("subscriptions").replaceChildren(...names.map(chip));
  element("invitation").hidden ||= names.length > 0;
}

function chip(name) {
  const item = document.createElement("li");
  item.dataset.channel = name;
  item.dataset.live = String(live.has(name));
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "×";
  button.setAttribute("aria-label", `Unsubscribe from ${name}`);
  button.addEventListener("click", () => unsubscribe(name));
  item.append(name, live.has(name) ? "" : " …", button);
  return item;
}

// --- the log -----------------------------------------------------------------------------------------

const WAYS = { in: ["↓", "received"], out: ["↑", "sent"], note: ["·", "note"] };
let rows = []; // rows that are not drawn yet

function opOf(text) {
  try {
    return String(JSON.parse(text).op ?? "?");
  } catch {
    return "?";
  }
}

function note(op, text) {
  log("note", op, text);
}

/** Add a row to the log. Rows are drawn once for each frame of the screen, so that many messages do not block
it. */
function log(way, op, text) {
  if (rows.length === 0) {
    requestAnimationFrame(draw);
  }
  rows.push({ way, op, text, at: new Date() });
  if (rows.length > LOG_ROWS) {
    rows.splice(0, rows.length - LOG_ROWS);
  }
}

/** Draw the new rows, and remove the oldest ones beyond `LOG_ROWS`. */
function draw() {
  const list = element("log");
  const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(...rows.map(row));
  rows = [];
  while (list.childElementCount > LOG_ROWS) {
    list.firstElementChild.remove();
  }
  if (follows) {
    list.scrollTop = list.scrollHeight;
  }
  for (const [name, count] of Object.entries(counts)) {
    element(`count-${name}`).textContent = count.toLocaleString();
  }
}

function row({ way, op, text, at }) {
  const item = document.createElement("li");
  item.className = way;
  item.dataset.op = op;
  const time = document.createElement("time");
  time.dateTime = at.toISOString();
  time.textContent = `${at.toLocaleTimeString("en-GB")}.${String(at.getMilliseconds()).padStart(3, "0")}`;
  const [arrow, meaning] = WAYS[way];
  const body = document.createElement("pre");
  if (way === "note" || text.length > SHOWN_SIGNS) {
    const rest = text.length - SHOWN_SIGNS;
    body.textContent = rest > 0 ? `${text.slice(0, SHOWN_SIGNS)} … ${rest.toLocaleString()} more` : text;
  } else {
    body.append(...pretty(text));
  }
  const sign = span("way", arrow);
  sign.setAttribute("role", "img");
  sign.setAttribute("aria-label", meaning);
  item.append(time, sign, span("op", op), body);
  return item;
}

function span(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}

/**
 * Format JSON with spaces and line breaks, as texts and spans. It splits the text into tokens without parsing
 values, * because parsing would round large numbers, and the log must show what was sent.
 */
function pretty(text) {
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+|"/g) ?? [];
  const isShort = text.length <= ONE_LINE_SIGNS;
  const parts = [];
  let depth = 0;
  const line = () => (isShort ? "" : `\n${"  ".repeat(depth)}`);
  tokens.forEach((token, place) => {
    const next = tokens[place + 1];
    if (token === "{" || token === "[") {
      depth += 1;
      parts.push(token, next === "}" || next === "]" ? "" : line());
    } else if (token === "}" || token === "]") {
      depth = Math.max(0, depth - 1);
      const before = tokens[place - 1];
      parts.push(before === "{" || before === "[" ? "" : line(), token);
    } else if (token === ",") {
      parts.push(token, isShort ? " " : line());
    } else if (token === ":") {
      parts.push(": ");
    } else {
      parts.push(next === ":" ? span("key", token) : token);
    }
  });
  return parts;
}

// --- the controls ------------------------------------------------------------------------------------

const channel = () => element("channel").value.trim();

element("channel").addEventListener("input", () => {
  element("publish-channel").textContent = channel() || "…";
});

element("channel-form").addEventListener("submit", (event) => {
  event.preventDefault();
  fault("");
  subscribe(channel());
});

element("unsubscribe").addEventListener("click", () => {
  fault("");
  unsubscribe(channel());
});

element("publish-form").addEventListener("submit", (event) => {
  event.preventDefault();
  fault("");
  publish();
});

element("data").addEventListener("input", () => {
  element("data-fault").textContent = "";
});

element("data").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    element("publish-form").requestSubmit(element("publish"));
  }
});

/** Publish the text of the form. JSON is sent as it was typed, without parsing and formatting it again. */
function publish() {
  const text = element("data").value;
  const isJson = document.querySelector("input[name=form]:checked").value === "json";
  try {
    if (isJson) {
      JSON.parse(text);
    }
  } catch (error) {
    element("data-fault").textContent = `This is not valid JSON: ${error.message}`;
    element("data").focus();
    return;
  }
  const data = isJson ? text.trim() : JSON.stringify(text);
  const ch = channel();
  send(`{"op":"pub","ch":${JSON.stringify(ch)},"data":${data},"id":${ask("pub", ch)}}`);
}

element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  reconnect();
});

element("connect").addEventListener("click", () => {
  if (element("state").dataset.state in BUTTONS) {
    disconnect();
  } else {
    attempts = 0;
    connect();
  }
});

element("clear").addEventListener("click", () => {
  rows = [];
  element("log").replaceChildren();
});

element("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(element("command").textContent);
    element("copied").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(element("command"));
    element("copied").textContent = "Selected: copy it with Ctrl + C.";
  }
});

// When the network is back, reconnect at once and skip the rest of the delay.
addEventListener("online", () => {
  if (element("state").dataset.state === "waiting") {
    connect();
  }
});

// --- start -------------------------------------------------------------------------------------------

/** Read the settings of the page and connect. */
async function begin() {
  const settings = await (await fetch("/page.json")).json();
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  url = `${scheme}://${location.hostname}:${settings.port}${settings.path}`;
  element("node").textContent = settings.node;
  element("command").textContent = settings.publish_command;
  element("bus").textContent = settings.bus;
  element("url").textContent = url;
  connect();
}

begin().catch((error) => show("stopped", `This page cannot start: ${error.message}`));
