"""Run the conversations of protocols/client/v1 with a gateway, as a client that uses only that file.

Source: protocols/client/v1/conversations.json, "about".
"""

import contextlib
import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
import msgpack
import msgspec
from redis import Redis
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

__all__ = ["Dialogue", "fits", "to_toml"]

PUBLISHED_S = 0.05
"""Time for a publication to reach the shard, also on a busy machine."""

ANSWER_S = 30.0  # a limit that no healthy run reaches
LAST = {"op": "ping", "id": 2**40}


def to_toml(config: Mapping[str, Any], path: str = "") -> str:
    """Return a configuration as text; scalars and lists of JSON have the same form in TOML."""
    plain = {key: value for key, value in config.items() if not isinstance(value, dict)}
    lines = [f"[{path}]"] if plain else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in config.items():
        if isinstance(value, dict):
            lines.append(to_toml(value, f"{path}.{key}" if path else key))
    return "\n".join(lines)


def fits(expected: Any, found: Any) -> bool:
    """Whether a message is the written one: "*" is any value, all else is exact, with types of numbers."""
    if expected == "*":
        return True
    if isinstance(expected, dict) and expected.keys() == {"bin"}:
        return isinstance(found, bytes) and found.hex() == expected["bin"]
    if isinstance(expected, dict):
        if not isinstance(found, dict) or expected.keys() != found.keys():
            return False
        return all(fits(each, found[key]) for key, each in expected.items())
    if isinstance(expected, list):
        if not isinstance(found, list) or len(expected) != len(found):
            return False
        return all(map(fits, expected, found))
    return type(expected) is type(found) and bool(expected == found)


def _with_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"bin"}:
            return bytes.fromhex(value["bin"])
        return {key: _with_bytes(each) for key, each in value.items()}
    return [_with_bytes(each) for each in value] if isinstance(value, list) else value


class _Publication(msgspec.Struct):
    data: msgspec.Raw


@dataclass
class _Client:
    """One client of a dialogue."""

    settings: dict[str, Any]
    form: str
    socket: ClientConnection | None = None
    is_over: bool = False

    def write(self, message: Any) -> str | bytes:
        text: str | bytes = (
            json.dumps(message) if self.form == "json" else msgpack.packb(_with_bytes(message))
        )
        return text

    def read(self, frame: str | bytes) -> Any:
        assert isinstance(frame, str) is (self.form == "json"), frame
        return json.loads(frame) if self.form == "json" else msgpack.unpackb(frame)


@dataclass
class Dialogue:
    """One conversation in one form.

    Args:
        book: The whole file.
        conversation: One of it.
        form: `json` or `msgpack`.
        host: Of the gateway, with its port.
        bus: The bus on which backends publish.
        heard: Every message that arrived, as JSON.
    """

    book: Mapping[str, Any]
    conversation: Mapping[str, Any]
    form: str
    host: str
    bus: Redis
    heard: list[Any] = field(default_factory=list)
    clients: dict[str, _Client] = field(default_factory=dict)
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def hold(self) -> None:
        """Run all steps; raise AssertionError where the gateway answers otherwise."""
        for name, settings in self.conversation["clients"].items():
            form = settings.get("form", self.form)
            self.clients[name] = _Client(self._filled(settings, f"wsgate.v1.{form}"), form)
        first = next(iter(self.clients))
        with self._open:
            for number, step in enumerate(self.conversation["steps"]):
                try:
                    self._take(self.clients[step.get("by", first)], step)
                except (AssertionError, TimeoutError, ConnectionClosed, InvalidStatus) as error:
                    raise AssertionError(f"step {number}: {step}\n{error}") from error
            for client in self.clients.values():
                if client.socket is not None and not client.is_over:
                    client.socket.send(client.write(LAST))
                    found = self._next(client)
                    assert found == {"op": "pong", "id": LAST["id"]}, f"at the end it said {found}"

    # --- placeholders ---------------------------------------------------------------------------------

    def _filled(self, value: Any, subprotocol: str) -> Any:
        if isinstance(value, str):
            value = value.replace("<host>", self.host).replace("<form>", subprotocol)
            return re.sub(r"<token ([^>]*)>", lambda match: self._token(match[1]), value)
        if isinstance(value, dict):
            return {key: self._filled(each, subprotocol) for key, each in value.items()}
        return [self._filled(each, subprotocol) for each in value] if isinstance(value, list) else value

    def _token(self, name: str) -> str:
        row = self.book["tokens"][name]
        claims = dict(row["claims"])
        for claim in ("exp", "nbf"):
            if f"{claim}_in_s" in row:
                claims[claim] = int(time.time()) + row[f"{claim}_in_s"]
        secret = row.get("secret", self.book["config"]["auth"]["hmac_secret"])
        return jwt.encode(claims, secret, row.get("algorithm", "HS256"))

    # --- connecting -----------------------------------------------------------------------------------

    def _connect(self, client: _Client) -> ClientConnection:
        settings = client.settings
        query = f"?{settings['query']}" if "query" in settings else ""
        headers = {"Authorization": settings["authorization"]} if "authorization" in settings else {}
        offered = settings.get("subprotocols", [f"wsgate.v1.{client.form}"])
        connecting = connect(
            f"ws://{self.host}{settings.get('path', '/ws')}{query}",
            additional_headers=headers,
            subprotocols=[Subprotocol(name) for name in offered] or None,
            origin=Origin(settings["origin"]) if "origin" in settings else None,
            compression=None,
            proxy=None,
            open_timeout=ANSWER_S,
            close_timeout=ANSWER_S,
        )
        return self._open.enter_context(connecting)

    # --- the steps ------------------------------------------------------------------------------------

    def _take(self, client: _Client, step: Mapping[str, Any]) -> None:
        (kind,) = step.keys() - {"by"}
        if kind == "publish":
            self._publish(step[kind])
        elif kind == "status":
            try:
                self._connect(client)
            except InvalidStatus as refusal:
                assert refusal.response.status_code == step[kind]
                return
            raise AssertionError("it was let in")
        else:
            if client.socket is None:
                client.socket = self._connect(client)
            value = self._filled(step[kind], f"wsgate.v1.{client.form}")
            getattr(self, f"_{kind}")(client, client.socket, value)

    def _publish(self, what: Mapping[str, str]) -> None:
        payload = bytes.fromhex(what["hex"]) if "hex" in what else what["data"].encode()
        self.bus.publish(f"wsgate:ch:{what['channel']}", payload)
        # The next step of the client uses another way to the shard, and must not arrive before this one.
        time.sleep(PUBLISHED_S)

    def _opened(self, client: _Client, connection: ClientConnection, subprotocol: str | None) -> None:
        assert connection.subprotocol == subprotocol

    def _send(self, client: _Client, connection: ClientConnection, message: Any) -> None:
        connection.send(client.write(message))

    def _send_text(self, client: _Client, connection: ClientConnection, text: str) -> None:
        connection.send(text)

    def _send_hex(self, client: _Client, connection: ClientConnection, text: str) -> None:
        connection.send(bytes.fromhex(text))

    def _send_together(self, client: _Client, connection: ClientConnection, messages: list[Any]) -> None:
        # The kernel sends them when all are written.
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        for message in messages:
            connection.send(client.write(message))
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def _next(self, client: _Client) -> Any:
        assert client.socket is not None
        message = client.read(client.socket.recv(ANSWER_S))
        if client.form == "json":
            self.heard.append(message)
        return message

    def _get(self, client: _Client, connection: ClientConnection, expected: Any) -> None:
        found = self._next(client)
        assert fits(expected, found), f"it said {found}"

    def _get_in_any_order(self, client: _Client, connection: ClientConnection, expected: list[Any]) -> None:
        left = list(expected)
        for _ in expected:
            found = self._next(client)
            place = next((index for index, each in enumerate(left) if fits(each, found)), None)
            assert place is not None, f"it said {found}, left were {left}"
            del left[place]

    def _get_text(self, client: _Client, connection: ClientConnection, text: str) -> None:
        frame = connection.recv(ANSWER_S)
        assert isinstance(frame, str)
        assert bytes(msgspec.json.decode(frame, type=_Publication).data).decode() == text

    def _close(self, client: _Client, connection: ClientConnection, expected: Mapping[str, Any]) -> None:
        client.is_over = True
        try:
            found = connection.recv(ANSWER_S)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, "it ended without a Close"
            assert closed.rcvd.code == expected["code"], f"it closed with {closed.rcvd}"
            return
        raise AssertionError(f"it said {found!r}")
