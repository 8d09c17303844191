"""Open many clients that send only answers to pings. The program needs only Python.

Usage: python tests/support/resting_clients.py <host> <port> <count>

It prints `open` when every client has received something, and ends when it is killed, or after ten minutes.
"""

import select
import socket
import sys
import time

PING, PONG = b"\x89\x00", b"\x8a\x80\x00\x00\x00\x00"
LIFE_S = 600.0


class Clients:
    """All clients, and the ones that have received something."""

    def __init__(self, host: str, port: int) -> None:
        self.address = host, port
        self.head = (
            f"GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ).encode()
        self.poller = select.epoll()
        self.open: dict[int, socket.socket] = {}
        self.told: set[int] = set()

    def join(self) -> None:
        """Connect one more client."""
        client = socket.create_connection(self.address, 30)
        client.sendall(self.head)
        self.open[client.fileno()] = client
        self.poller.register(client.fileno(), select.EPOLLIN)

    def answer(self, wait_s: float) -> None:
        """Read the received bytes and answer pings."""
        for descriptor, _ in self.poller.poll(wait_s, 1_024):
            self.told.add(descriptor)
            if PING in self.open[descriptor].recv(65_536):
                self.open[descriptor].send(PONG)


def main() -> None:
    """Open all clients, then answer pings until the end."""
    clients, count = Clients(sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
    until_s = time.monotonic() + LIFE_S
    for _ in range(count):
        clients.join()
        clients.answer(0.0)
    while len(clients.told) < count:
        clients.answer(1.0)
    print("open", flush=True)
    while time.monotonic() < until_s:
        clients.answer(1.0)


if __name__ == "__main__":
    main()
