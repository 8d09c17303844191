"""Watch a channel: what `wsgate listen` runs, on `websockets` and `msgpack`."""

import json
from collections.abc import Callable
from typing import Any

import msgpack
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from wsgate.errors import BackendError

__all__ = ["listen"]


def listen(url: str, channel: str, show: Callable[[str], None], *, token: str = "", limit: int = 0) -> None:
    """Subscribe and show every message as one line of JSON, until the gateway ends it.

    Args:
        url: `ws://host:port/ws`.
        channel: What to subscribe to; `@me` for the token's own inbox, which needs no subscribing.
        show: Called with each line.
        token: Sent in the header when given.
        limit: Stop after so many publications; 0: never.

    Raises:
        BackendError: The gateway cannot be reached or said no; the message says which.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with connect(
            url, subprotocols=[Subprotocol("wsgate.v1.msgpack")], additional_headers=headers
        ) as socket:
            if channel != "@me":
                socket.send(msgpack.packb({"op": "sub", "ch": channel, "id": 1}))
            seen = 0
            for message in socket:
                item: dict[str, Any] = msgpack.unpackb(message)
                show(json.dumps(item, ensure_ascii=False, default=bytes.hex))
                if item.get("op") == "err":
                    raise BackendError(f"{item['code']} {item['error']}: {item['message']}", temporary=False)
                seen += item.get("op") == "msg"
                if limit and seen >= limit:
                    return
    except InvalidStatus as error:
        raise BackendError(f"the gateway answered {error.response.status_code}", temporary=False) from error
    except ConnectionClosed as error:
        raise BackendError(f"the gateway closed the connection: {error}", temporary=True) from error
    except OSError as error:
        raise BackendError(f"{url} cannot be reached: {error}", temporary=True) from error
