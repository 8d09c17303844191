"""What the client port serves beside connections: the JavaScript client, and whether the node is ready.

In development it also leads a browser to the try page. The JavaScript client is rendered once, when this
module is imported, so that all shards share it.
"""

from http import HTTPStatus
from importlib import resources
from typing import Final

__all__ = [
    "CLIENT_PAGE",
    "answer",
    "is_client_request",
    "is_page_request",
    "is_readiness_request",
    "page_redirect",
]

_READY: Final = (b"GET /readyz ", b"GET /readyz?")
_PAGE: Final = (b"GET / ", b"GET /?")
_CLIENT: Final = (b"GET /client.js ", b"GET /client.js?")


def is_readiness_request(head: bytes) -> bool:
    """Whether a request head asks for `/readyz`."""
    return head.startswith(_READY)


def is_client_request(head: bytes) -> bool:
    """Whether a request head asks for `/client.js`."""
    return head.startswith(_CLIENT)


def is_page_request(head: bytes) -> bool:
    """Whether a request head asks for `/` as a browser's address bar does, not as a WebSocket."""
    return head.startswith(_PAGE) and b"\r\nsec-websocket-key:" not in head.lower()


def page_redirect(url: str) -> bytes:
    """The answer that leads a browser to the try page, which the admin port serves.

    Args:
        url: From the configuration: an answer never repeats the host that a request names.
    """
    body = f"This is the port for WebSocket clients. The page to try the gateway is {url}\n"
    return answer(302, body.encode(), "text/plain", f"Location: {url}", "Cache-Control: no-store")


def answer(status: int, body: bytes, content_type: str = "application/json", *more: str) -> bytes:
    """A whole HTTP answer, after which the connection ends."""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Connection: close",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def _client_page() -> bytes:
    """Any page may import it: it holds no secret, and who may connect is judged when it does."""
    # Not by the package's name: it would be imported, with everything the Python client is built on.
    body = resources.files("wsgate").joinpath("client", "js", "wsgate.js").read_bytes()
    return answer(
        200,
        body,
        "text/javascript; charset=utf-8",
        "Access-Control-Allow-Origin: *",
        "Cache-Control: public, max-age=300",
        "X-Content-Type-Options: nosniff",
    )


CLIENT_PAGE: Final = _client_page()
