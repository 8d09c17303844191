"""Runs the chat room: `make chat`, or `python -m examples.chat`. Open the printed page in two windows."""

import argparse
import asyncio
import contextlib
import secrets
from pathlib import Path

from examples.chat.pages import serving_pages
from examples.chat.room import Room
from examples.gateway import running_gateway
from wsgate.client.backend import ConsumerOptions, Event, EventConsumer, Publisher
from wsgate.client.backend.address import open_client

_CONFIG = Path(__file__).parent / "wsgate.toml"


async def work(bus_url: str) -> None:
    """Run the backend: handle events until Ctrl-C."""
    opened = open_client(bus_url)  # knows also the URLs of sentinels and clusters, which redis-py does not
    redis = opened.client
    room = Room(redis, Publisher(redis))

    async def handle(event: Event) -> None:
        print(f"{event.type:<13}{event.user or '-':<21}{event.data or event.reason or ''}", flush=True)
        await room.handle(event)

    consumer = EventConsumer(redis, "chat", handle, options=ConsumerOptions(partitions=1))
    try:
        await consumer.run()
    finally:
        await opened.close()


def main() -> None:
    """Start the gateway, the web server of the page, and the backend."""
    parser = argparse.ArgumentParser(prog="examples.chat", description="A chat room with a page.")
    parser.add_argument("--port", type=int, default=8080, help="port of the page (default 8080)")
    parser.add_argument(
        "--gateway-port", type=int, default=8000, help="port of the gateway for clients (default 8000)"
    )
    parser.add_argument(
        "--redis", metavar="URL", help="URL of the bus; by default the gateway starts a private one"
    )
    options = parser.parse_args()
    secret = secrets.token_urlsafe(32)
    with (
        contextlib.suppress(KeyboardInterrupt),
        serving_pages(options.port, secret=secret) as pages,
        running_gateway(
            _CONFIG, secret=secret, port=options.gateway_port, redis=options.redis, origins=pages.origins
        ) as gateway,
    ):
        pages.gateway_port = gateway.port
        print(f"open {pages.origins[0]}/ in two windows; Ctrl-C ends it", flush=True)
        asyncio.run(work(gateway.bus_url))


if __name__ == "__main__":
    main()
