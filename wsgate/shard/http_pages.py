"""Recognise and build the HTTP responses of the client port: the JavaScript client, readiness, a redirect.

The redirect leads a browser to the try page in development. The response with the JavaScript client is built
once, when this module is imported, so that all shards share it.
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
    """Return whether a request head is for `/readyz`."""
    return head.startswith(_READY)


def is_client_request(head: bytes) -> bool:
    """Return whether a request head is for `/client.js`."""
    return head.startswith(_CLIENT)


def is_page_request(head: bytes) -> bool:
    """Return whether a request head is for `/` and is no WebSocket handshake."""
    return head.startswith(_PAGE) and b"\r\nsec-websocket-key:" not in head.lower()


def page_redirect(url: str) -> bytes:
    """Build the response that redirects a browser to the try page, which the admin port serves.

    Args:
        url: From the configuration; the host that a request names is never repeated.
    """
    body = f"This is the port for WebSocket clients. The page to try the gateway is {url}\n"
    return answer(302, body.encode(), "text/plain", f"Location: {url}", "Cache-Control: no-store")


def answer(status: int, body: bytes, content_type: str = "application/json", *more: str) -> bytes:
    """Build a complete HTTP response, after which the connection is closed.

    Args:
        status: The status code.
        body: The body.
        content_type: The media type of the body.
        more: Further header lines, without their line ends.
    """
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Connection: close",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def _client_page() -> bytes:
    """Build the response with the JavaScript client.

    Pages of any origin may import it: it has no secret in it, and the origin is checked in the handshake.
    """
    # `files` imports the package it is called with, and `wsgate.client` would import the Python client.
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
"""The complete HTTP response to a request for `/client.js`."""
