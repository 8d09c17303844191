"""Compare the masks of the Python client with the randomness of the system (S32)."""

import asyncio
import random
import secrets

import pytest
from websockets.utils import accept_key

from wsgate.client.protocol import SUBPROTOCOL
from wsgate.client.transport import Opening, open_websocket

MESSAGES = 500
SIZE = 8  # of one frame of the client: header 2, mask 4, payload 2


async def masks_on_the_wire() -> list[bytes]:
    """Return the masks of some messages, as a server reads them."""
    seen: list[bytes] = []
    is_done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line for line in head.splitlines() if line.lower().startswith("sec-websocket-key:"))
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
            f"Sec-WebSocket-Accept: {accept_key(key.split()[1])}\r\n\r\n".encode()
        )
        for _ in range(MESSAGES):
            frame = await reader.readexactly(SIZE)
            assert frame[:2] == b"\x82\x82", "expected a final, binary, masked frame of two bytes"
            assert bytes(a ^ b for a, b in zip(frame[6:], frame[2:], strict=False)) == b"hi"
            seen.append(frame[2:6])
        is_done.set()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        opening = Opening(
            url=f"ws://127.0.0.1:{port}/ws",
            token=None,
            within_s=10,
            max_message_bytes=1000,
            now_s=loop.time,
        )
        transport = await open_websocket(opening)
        for _ in range(MESSAGES):
            await transport.send(b"hi")
        async with asyncio.timeout(10):
            await is_done.wait()
        transport.abort()
    return seen


def test_masks_of_the_client_are_exactly_the_bytes_of_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    from_system: list[bytes] = []
    original = secrets.token_bytes

    def token_bytes(size: int | None = None) -> bytes:
        from_system.append(original(size))
        return from_system[-1]

    monkeypatch.setattr(secrets, "token_bytes", token_bytes)
    seen = asyncio.run(masks_on_the_wire())
    assert seen == [mask for mask in from_system if len(mask) == 4][:MESSAGES]


def test_seeded_random_module_does_not_repeat_the_masks() -> None:
    runs = []
    for _ in range(2):
        random.seed(7)
        runs.append(asyncio.run(masks_on_the_wire()))
    assert not set(runs[0]) & set(runs[1])
    for mask_list in runs:
        assert len(set(mask_list)) >= MESSAGES - 1, (
            "too many equal masks; two of 500 are equal once in 34,000 runs"
        )
        for bit in range(32):
            share = sum(int.from_bytes(mask, "big") >> bit & 1 for mask in mask_list) / MESSAGES
            assert 0.3 < share < 0.7
