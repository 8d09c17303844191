"""Prints the messages of one channel: the implementation of `wsgate listen`."""

import json
from collections.abc import Callable
from typing import Any, Final

import msgpack
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from wsgate.client.protocol import INBOX, SUBPROTOCOL
from wsgate.client.urls import carries_token, check_url, shown_url
from wsgate.errors import BackendError, SettingsError

__all__ = ["listen"]

MESSAGE_LIMIT_BYTES: Final = (1 << 30) + (64 << 10)
"""The largest message that is accepted: the largest `max_publish` that a gateway can have, and its fields."""


def listen(url: str, channel: str, show: Callable[[str], None], *, token: str = "", limit: int = 0) -> None:
    """Subscribe to a channel and pass every message to `show` as one line of JSON, until the connection ends.

    The connection is direct: proxies of the environment are not used.

    Args:
        url: `ws://host:port/ws`.
        channel: The channel to subscribe to; `@me` is the inbox of the token's user and needs no subscribing.
        show: Called with each line.
        token: Sent in the Authorization header unless empty.
        limit: Return after so many publications; 0: never.

    Raises:
        SettingsError: No WebSocket can be opened at this URL, or the inbox is requested without a token.
        BackendError: The gateway cannot be reached, or refused the connection or the channel. The message
            holds the address or the cause.
    """
    check_url(url)
    if channel == INBOX and not token and not carries_token(url):
        raise SettingsError(f"{INBOX} is the inbox of a user: pass a token")
    address = shown_url(url)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with connect(
            url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers=headers,
            proxy=None,
            max_size=MESSAGE_LIMIT_BYTES,
        ) as socket:
            if socket.subprotocol != SUBPROTOCOL:
                raise BackendError(f"{address} does not speak wsgate.v1", temporary=False)
            if channel != INBOX:
                socket.send(msgpack.packb({"op": "sub", "ch": channel, "id": 1}))
            seen = 0
            for message in socket:
                item = _item(message, address)
                show(json.dumps(item, ensure_ascii=False, default=bytes.hex))
                if item.get("op") == "err":
                    text = f"{item.get('code')} {item.get('error')}: {item.get('message', '')}"
                    raise BackendError(text, temporary=False)
                seen += item.get("op") == "msg"
                if limit and seen >= limit:
                    return
    except InvalidStatus as error:
        raise BackendError(f"the gateway answered {error.response.status_code}", temporary=False) from error
    except ConnectionClosed as error:
        is_own = error.sent is not None and not error.rcvd_then_sent
        who = "this command" if is_own else "the gateway"
        raise BackendError(f"{who} closed the connection: {error}", temporary=not is_own) from error
    except (WebSocketException, UnicodeError) as error:
        raise BackendError(f"{address} is not a gateway: {error}", temporary=False) from error
    except OSError as error:
        raise BackendError(f"{address} cannot be reached: {error}", temporary=True) from error


def _item(message: str | bytes, address: str) -> dict[str, Any]:
    """Decode one message to a map.

    Raises:
        BackendError: It is not a msgpack map.
    """
    try:
        item: object = msgpack.unpackb(message) if isinstance(message, bytes) else None
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        item = None
    if not isinstance(item, dict):
        raise BackendError(f"{address} does not speak wsgate.v1", temporary=False)
    return item
