"""Run an issuer of tokens: keys that rotate, and a small HTTP server that publishes them, well or badly."""

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

__all__ = ["ISSUER", "Issuer", "SigningKey", "issuer"]

ISSUER = "https://issuer.example"


class SigningKey:
    """One key pair with a key id.

    Args:
        kid: The key id.
        algorithm: An algorithm with a public key.
        rsa_bits: Size of an RSA key.
    """

    def __init__(self, kid: str, algorithm: str = "ES256", *, rsa_bits: int = 2048) -> None:
        self.kid = kid
        self.algorithm = algorithm
        make: dict[str, Any] = {
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
            "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }
        for size in (256, 384, 512):
            for family in ("RS", "PS"):
                make[f"{family}{size}"] = lambda: rsa.generate_private_key(65537, rsa_bits)
        self.private: Any = make[algorithm]()

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """Return the public half as a row of a key set; a change to None leaves a member out."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        row: dict[str, Any] = json.loads(algorithm.to_jwk(self.private.public_key()))
        row |= {"kid": self.kid, "alg": self.algorithm, "use": "sig"} | changes
        return {name: value for name, value in row.items() if value is not None}

    def token(self, user: str = "42", **claims: Any) -> str:
        """Return a token that lasts an hour unless claims change it; a `kid` in them replaces the key id."""
        now_s = int(time.time())
        kid = claims.pop("kid", self.kid)
        given = {"sub": user, "iss": ISSUER, "iat": now_s, "exp": now_s + 3600} | claims
        return jwt.encode(
            {name: value for name, value in given.items() if value is not None},
            self.private,
            algorithm=self.algorithm,
            headers={} if kid is None else {"kid": kid},
        )


class Issuer:
    """The answers of the server, which a test changes while it runs.

    Attributes:
        keys: The keys of the set; rows made by hand may be among them.
        status: The status of every answer.
        headers: More headers of every answer.
        body: A body that replaces the set.
        pause_s: The pause between the bytes of the body; 0 for none.
        asked: The paths of all requests.
        sent: The headers of each request.
    """

    def __init__(self) -> None:
        self.keys: list[SigningKey | dict[str, Any]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        self.pause_s = 0.0
        self.asked: list[str] = []
        self.sent: list[Message] = []
        self.url = ""

    def document(self) -> bytes:
        """Return the set as it is published."""
        rows = [key.jwk() if isinstance(key, SigningKey) else key for key in self.keys]
        return json.dumps({"keys": rows}).encode()


def symmetric(kid: str, secret: bytes) -> dict[str, Any]:
    """Return a row with a symmetric key, which no issuer should publish."""
    return {"kty": "oct", "kid": kid, "k": base64.urlsafe_b64encode(secret).decode().rstrip("=")}


@contextlib.contextmanager
def issuer(*keys: SigningKey | dict[str, Any]) -> Iterator[Issuer]:
    """Run an issuer whose set can be fetched at its `url` while the context is open."""
    served = Issuer()
    served.keys = list(keys)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            served.sent.append(self.headers)
            body = served.document() if served.body is None else served.body
            self.send_response(served.status)
            for name, value in served.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                if not served.pause_s:
                    self.wfile.write(body)
                    return
                for place in range(len(body)):
                    self.wfile.write(body[place : place + 1])
                    time.sleep(served.pause_s)

        def log_message(self, format: str, *args: object) -> None:
            """Write no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}/keys.json"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
