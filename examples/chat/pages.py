"""The web server of the chat room: it serves the page, and issues a token for a user name."""

import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import jwt

__all__ = ["PageServer", "serving_pages"]

_PAGE: Final = Path(__file__).parent / "page.html"
_NAME: Final = re.compile(r"[\w.-]{1,20}")
_TOKEN_LIFE_S: Final = 600
_BODY_LIMIT_BYTES: Final = 1024


class PageServer(http.server.ThreadingHTTPServer):
    """An HTTP server with the address of the gateway and the secret that it shares with the gateway."""

    def __init__(self, port: int, secret: str) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.secret = secret
        self.gateway_port = 0

    @property
    def origins(self) -> tuple[str, str]:
        """The origins of the served pages: a browser sends the one that its user has opened."""
        port = self.server_address[1]
        return f"http://localhost:{port}", f"http://127.0.0.1:{port}"


@contextmanager
def serving_pages(port: int, *, secret: str) -> Iterator[PageServer]:
    """Serve the page on the local host, in a thread. Port 0 means a free port."""
    with PageServer(port, secret) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = 10
    server: PageServer

    def do_GET(self) -> None:
        """Serve the page, and the port of the gateway."""
        if self.path == "/":
            self._answer(_PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/gateway":
            self._answer_json({"port": self.server.gateway_port})
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Issue a token for `{"name": ...}`. A real application checks a login here."""
        try:
            length = max(0, min(int(self.headers.get("Content-Length", 0)), _BODY_LIMIT_BYTES))
            name = json.loads(self.rfile.read(length))["name"]
        except (ValueError, KeyError, TypeError):
            name = None
        if self.path != "/token":
            self.send_error(HTTPStatus.NOT_FOUND)
        elif not isinstance(name, str) or not _NAME.fullmatch(name):
            self.send_error(
                HTTPStatus.BAD_REQUEST,
                "a name has 1 to 20 letters, digits, dots, dashes or underscores",
            )
        else:
            claims = {"sub": name, "exp": int(time.time()) + _TOKEN_LIFE_S}
            self._answer_json({"token": jwt.encode(claims, self.server.secret, algorithm="HS256")})

    def _answer_json(self, value: object) -> None:
        self._answer(json.dumps(value).encode(), "application/json")

    def _answer(self, body: bytes, content_type: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print no line for a request: the terminal shows the chat."""
