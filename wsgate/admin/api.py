"""The HTTP API for backends: `POST /api/<method>` with a JSON object as request and as response.

A method that was called has the HTTP status 200, and a body with `result` or `error`. Any other status means
that no method was called. The error codes are those of Centrifugo.

Source: https://centrifugal.dev/docs/server/server_api for the form and the codes.
"""

import asyncio
import base64
import binascii
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from wsgate.admin import AdminOptions
from wsgate.admin.control import Controller, Unreached
from wsgate.bus import Names, Publication, encode_publication
from wsgate.bus.receivers import ANY_NAMESPACE, is_channel, is_user, publish_limit_bytes
from wsgate.payload import BINARY, JSON, Payload, classify

__all__ = ["Api", "ApiKey", "Publish", "is_local_host", "is_own_origin"]

Publish = Callable[[bytes, bytes], Awaitable[str]]
"""Publishes an envelope under a name on the bus, and returns a `PublishOutcome`."""

BODY_LIMIT_BYTES: Final = 1024 * 1024
ENVELOPE_ROOM_BYTES: Final = 64 * 1024
DISCARD_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""How much of a body that is too large is read and discarded, so that the client receives the refusal."""

CALL_S: Final = 8.0
"""The longest time for one method, in seconds. It is below `ANSWER_S` of `wsgate.admin.connections`, so that
the client of a slow bus receives an error and not a reset. A method may wait for several replies, each for
`bus.command_timeout`."""

WITHIN_MOST_S: Final = 3_600
_BEARER: Final = "bearer "

_Answer = dict[str, object]
_INTERNAL: Final = 100
_UNAUTHORIZED: Final = 101
_UNKNOWN_CHANNEL: Final = 102
_PERMISSION_DENIED: Final = 103
_METHOD_NOT_FOUND: Final = 104
_LIMIT_EXCEEDED: Final = 106
_BAD_REQUEST: Final = 107


def _error(code: int, message: str) -> _Answer:
    return {"error": {"code": code, "message": message}}


# The bodies of refusals without a method call, by HTTP status.
_REFUSALS: Final = {
    400: _error(_BAD_REQUEST, "the body is not a JSON object"),
    401: _error(_UNAUTHORIZED, "unauthorized"),
    403: _error(_PERMISSION_DENIED, "a browser may call this only from a page of this server"),
    404: _error(_METHOD_NOT_FOUND, "method not found"),
    405: _error(_BAD_REQUEST, "methods are called by POST"),
    413: _error(_LIMIT_EXCEEDED, "the body is too large"),
}
_HEADERS: Final = {401: {"WWW-Authenticate": "Bearer"}, 405: {"Allow": "POST"}, 413: {"Connection": "close"}}


class ApiKey:
    """The API key that callers must send.

    Args:
        key: The configured key; empty: every key is refused.
    """

    def __init__(self, key: str) -> None:
        self._digest = sha256(key.encode()).digest() if key else b""

    def is_shown(self, headers: Headers) -> bool:
        """Whether the header `X-API-Key` or `Authorization: Bearer` has the key.

        Digests are compared, so that the time of the comparison reveals neither the key nor its length.
        """
        shown = headers.get("x-api-key")
        authorization = headers.get("authorization", "")
        if shown is None and authorization[: len(_BEARER)].lower() == _BEARER:
            shown = authorization[len(_BEARER) :].strip(" \t")  # not 0x85 and 0xA0, which str.strip removes
        if shown is None or not self._digest:
            return False
        return hmac.compare_digest(sha256(shown.encode("latin-1")).digest(), self._digest)


def is_own_origin(headers: Headers, *, only_loopback: bool) -> bool:
    """Whether a request comes from a page of this server, or has no Origin header because it is no browser's.

    Args:
        headers: The headers of the request.
        only_loopback: Whether the host of the origin must also be localhost or a loopback address. A foreign
            name that points to this machine (DNS rebinding) has an equal origin and host.
    """
    origins = headers.getlist("origin")
    if not origins:
        return True
    try:
        parts = urlsplit(origins[0])
        name = parts.hostname or ""
    except ValueError:
        return False
    if len(origins) > 1 or parts.scheme not in ("http", "https"):
        return False
    is_own = parts.netloc.lower() == headers.get("host", "").lower()
    return is_own and (not only_loopback or _is_loopback(name))


_HOST: Final = re.compile(r"(?:(?P<name>[a-z0-9._-]+)|\[(?P<address>[0-9a-f:.]+)\])(?::[0-9]{1,5})?")


def is_local_host(headers: Headers, *, only_loopback: bool) -> bool:
    """Whether the Host header of a request is an address or localhost, and not a name.

    A page of a foreign name that points to this machine (DNS rebinding) can read responses as its own, and
    sends no Origin header with such requests. The Host header still contains the foreign name.

    Args:
        headers: The headers of the request.
        only_loopback: Whether only localhost and loopback addresses are allowed, and no other IP address.
    """
    match = _HOST.fullmatch(headers.get("host", "").lower())
    name = (match["name"] or match["address"]) if match else ""
    return _is_loopback(name) or (not only_loopback and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


def _is_loopback(name: str) -> bool:
    """Whether a host is localhost or a loopback address; `127.0.0.1.evil.example` is neither."""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


class Api:
    """The ASGI application for `/api/{method}`, which checks a request and calls its method.

    Args:
        options: The key, the limits, the prefix, and whether this is development mode on loopback.
        publish: Sends publications to the bus.
        controller: Sends control commands to all shards.
    """

    def __init__(self, options: AdminOptions, publish: Publish, controller: Controller) -> None:
        """Set up the key, the limits and the table of methods."""
        # Development mode needs no key, but a key that is set is required there too.
        self._key = None if options.is_dev and not options.api_key else ApiKey(options.api_key)
        self._only_loopback = options.is_dev and options.is_loopback
        self._publish_to_bus = publish
        self._controller = controller
        self._names = Names(options.prefix)
        self._publish_limits = options.publish_limits or {ANY_NAMESPACE: options.max_publish_bytes}
        # base64 in JSON is a third longer than its data.
        self._body_limit = max(BODY_LIMIT_BYTES, 2 * options.max_publish_bytes) + ENVELOPE_ROOM_BYTES
        self._methods: Final = {
            "publish": self._publish,
            "disconnect": self._disconnect,
            "refresh": self._refresh,
            "revoke": self._revoke,
            "unrevoke": self._unrevoke,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request: refuse it, or call its method, and send the response."""
        request = Request(scope, receive)
        status = self._refuse(request)
        response = _refusal(status) if status else await self._run(request)
        await response(scope, receive, send)

    def _refuse(self, request: Request) -> int:
        """Return the HTTP status of a refusal that does not depend on the body; 0: the request is allowed."""
        if not is_own_origin(request.headers, only_loopback=self._only_loopback):
            return 403
        if request.method != "POST":
            return 405
        if self._key is not None and not self._key.is_shown(request.headers):
            return 401
        return 0 if request.path_params["method"] in self._methods else 404

    async def _run(self, request: Request) -> Response:
        """Read the body of a request, decode its fields, and call the method."""
        try:
            body = await self._read(request)
        except ClientDisconnect:
            return Response()  # the client has disconnected
        if body is None:
            return _refusal(413)
        try:
            body.decode()  # raw fields are not checked for valid UTF-8 below
            fields = _FIELDS.decode(body)
            # As in tokens, a member that is null counts as absent; but null can be published.
            is_given = {name: name == "data" or bytes(raw) != b"null" for name, raw in fields.items()}
            fields = {name: raw for name, raw in fields.items() if is_given[name]}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _refusal(400)
        try:
            async with asyncio.timeout(CALL_S):
                answer = await self._methods[request.path_params["method"]](fields)
        except TimeoutError:
            answer = _error(_INTERNAL, "no reply of the bus in time: the command may have been executed")
        return JSONResponse(answer)

    async def _read(self, request: Request) -> bytes | None:
        """Read the body of a request; None when it is too large."""
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._body_limit and "expect" in request.headers:
            return None  # the client waits for 100 Continue, so the refusal saves sending the body
        body, size = bytearray(), 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= self._body_limit:
                body += chunk
            elif size > DISCARD_LIMIT_BYTES:
                break
        return bytes(body) if size <= self._body_limit else None

    async def _publish(self, fields: Mapping[str, msgspec.Raw]) -> _Answer:
        """Method `publish`, `{"channel", "data" | "b64data"}`: publish to a channel or an inbox `@user`."""
        channel = _text(fields.get("channel"))
        if channel is None or not is_channel(channel):
            return _error(_BAD_REQUEST, "bad request: channel")
        payload = _payload(fields)
        if payload is None:
            return _error(_BAD_REQUEST, "bad request: either data, or b64data in base64")
        # The shards would drop a publication to an unknown namespace, or one above the limit of its
        # namespace.
        limit_bytes = publish_limit_bytes(self._publish_limits, channel)
        if limit_bytes is None:
            return _error(_UNKNOWN_CHANNEL, "unknown channel")
        if len(payload.data) > limit_bytes:
            return _error(_LIMIT_EXCEEDED, "limit exceeded")
        publication = Publication(payload, timestamp_ms=time.time_ns() // 1_000_000)
        return await self._say(self._names.channel(channel.encode()), encode_publication(publication))

    async def _disconnect(self, fields: Mapping[str, msgspec.Raw]) -> _Answer:
        """Method `disconnect`, `{"user", "conn"}`, one or both: close these connections on every node."""
        user, conn = _text(fields.get("user")), _text(fields.get("conn"))
        if ("user" in fields) != (user is not None and is_user(user)) or not (user or conn):
            return _error(_BAD_REQUEST, "bad request: user")
        if ("conn" in fields) != (conn is not None and _CONN.fullmatch(conn) is not None):
            return _error(_BAD_REQUEST, "bad request: conn")
        return await self._control({"op": "disconnect", "user": user, "conn": conn})

    async def _refresh(self, fields: Mapping[str, msgspec.Raw]) -> _Answer:
        """Method `refresh`, `{"user", "within_s"}`: require new tokens from a user's connections."""
        return await self._about_user("refresh", fields, {"within_s": _seconds(fields.get("within_s"), 30)})

    async def _revoke(self, fields: Mapping[str, msgspec.Raw]) -> _Answer:
        """Method `revoke`, `{"user", "before", "within_s"}`: refuse tokens issued before a time, default now.

        The response contains that time. Use it to repeat a call that was not confirmed: the time of the
        repetition would also revoke tokens that were issued in between.
        """
        before = _number(fields.get("before"), time.time())
        more = {"before": before, "within_s": _seconds(fields.get("within_s"), 0)}
        answer = await self._about_user("revoke", fields, more)
        result = answer.get("result", answer)
        if isinstance(result, dict) and ("result" in answer or "shards" in answer):
            result["before"] = before
        return answer

    async def _unrevoke(self, fields: Mapping[str, msgspec.Raw]) -> _Answer:
        """Method `unrevoke`, `{"user"}`: withdraw the revocation of a user, whose tokens are valid again."""
        return await self._about_user("unrevoke", fields, {})

    async def _about_user(
        self, op: str, fields: Mapping[str, msgspec.Raw], more: Mapping[str, object]
    ) -> _Answer:
        """Send a control command about one user, or report a field that is not valid."""
        user = _text(fields.get("user"))
        if user is None or not is_user(user):
            return _error(_BAD_REQUEST, "bad request: user")
        for name, value in more.items():
            if value is None:
                return _error(_BAD_REQUEST, f"bad request: {name}")
        return await self._control({"op": op, "user": user, **more})

    async def _control(self, command: Mapping[str, object]) -> _Answer:
        """Send a control command to every shard of every node; an error lists the shards without a reply."""
        given = {name: value for name, value in command.items() if value is not None}
        try:
            await self._controller.send(given)
        except Unreached as fault:
            answer = _error(_INTERNAL, fault.text)
            if fault.shards:
                answer["shards"] = list(fault.shards)
            return answer
        return {"result": {}}

    async def _say(self, name: bytes, data: bytes) -> _Answer:
        """Publish to the bus, and convert the outcome into a response."""
        outcome = await self._publish_to_bus(name, data)
        if outcome == "unknown":
            return _error(_INTERNAL, "no reply of the bus in time: it may have been published")
        return _error(_INTERNAL, "unavailable") if outcome else {"result": {}}


_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str)
_NUMBER: Final = msgspec.json.Decoder(float)
_CONN: Final = re.compile("[0-9a-f]{16}")


def _refusal(status: int) -> Response:
    return JSONResponse(_REFUSALS[status], status, _HEADERS.get(status))


def _text(raw: msgspec.Raw | None) -> str | None:
    """Decode a field that must be a text; None when it is absent, of another type or not valid text."""
    try:
        return None if raw is None else _TEXT.decode(raw)
    except msgspec.MsgspecError:
        return None


def _number(raw: msgspec.Raw | None, default: float) -> float | None:
    """Decode a field that must be a number of 0 or more; None when it is not valid."""
    try:
        value = default if raw is None else _NUMBER.decode(raw)
    except msgspec.MsgspecError:
        return None
    return value if 0 <= value < 2**53 else None


def _seconds(raw: msgspec.Raw | None, default: int) -> int | None:
    """Decode a field that must be whole seconds, 0 to 3,600; None when it is not valid."""
    value = _number(raw, default)
    return int(value) if value is not None and value == int(value) and value <= WITHIN_MOST_S else None


def _payload(fields: Mapping[str, msgspec.Raw]) -> Payload | None:
    """Make the payload from `data` (its JSON text, unchanged) or `b64data` (bytes); None if not valid."""
    if ("data" in fields) == ("b64data" in fields):
        return None
    if "data" in fields:
        payload = classify(bytes(fields["data"]))
        return payload if payload.encoding == JSON else None
    text = _text(fields["b64data"])
    try:
        return None if text is None else Payload(BINARY, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return None
