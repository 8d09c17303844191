"""Runs the push example: `make push`, or `python -m examples.push`.

Exits with 1 if a notification is lost or repeated.
"""

import argparse
import asyncio
import secrets
import sys
import time
from pathlib import Path
from typing import Final

import jwt

from examples.gateway import RunningGateway, running_gateway
from examples.push.phone import Phone
from examples.push.shop import Shop
from examples.push.tunnel import Tunnel
from wsgate.client.backend import ConsumerOptions, EventConsumer, Publisher
from wsgate.client.backend.address import open_client

_CONFIG: Final = Path(__file__).parent / "wsgate.toml"
_STEPS: Final = ("ordered", "paid", "packed", "on its way", "in your town", "at your door")
_LANES: Final = {"shop": 0, "network": 1, "phone": 2}
_WIDTH: Final = 30
_PATIENCE_S: Final = 60.0


class Story:
    """Prints what happens, with one column for each participant and the seconds since the start."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        print("         " + "".join(name.ljust(_WIDTH) for name in _LANES))

    def tell(self, who: str, what: str) -> None:
        """Print one line in the column of one participant."""
        print(f"{time.monotonic() - self._began_s:6.2f} s {' ' * (_WIDTH * _LANES[who])}{what}", flush=True)


async def play(gateway: RunningGateway, options: argparse.Namespace, secret: str) -> bool:
    """Push notifications, with no network for a third of the time; return whether each was shown once."""
    user = f"user-{secrets.token_hex(4)}"
    story = Story()
    opened = open_client(gateway.bus_url)  # knows also the URLs of sentinels and clusters
    redis = opened.client
    shop = Shop(redis, Publisher(redis))
    consumer = EventConsumer(redis, "shop", shop.handle, options=ConsumerOptions(partitions=1, start_at="$"))

    def token() -> str:
        return jwt.encode({"sub": user, "exp": int(time.time()) + 300}, secret, algorithm="HS256")

    async with Tunnel(gateway.port) as tunnel:
        url = f"ws://127.0.0.1:{tunnel.port}/ws"
        phone = Phone(url, token, lambda what: story.tell("phone", what))
        tasks = [asyncio.create_task(phone.run()), asyncio.create_task(consumer.run())]
        try:
            await asyncio.wait_for(phone.ready.wait(), _PATIENCE_S)
            for number in range(1, options.count + 1):
                if number == options.count // 3 + 1:
                    tunnel.lose()
                    story.tell("network", "gone")
                if number == options.count * 2 // 3 + 1:
                    tunnel.find()
                    story.tell("network", "back")
                text = f"Your order is {_STEPS[(number - 1) % len(_STEPS)]}"
                story.tell("shop", f"({await shop.push(user, text)}) {text}")
                await asyncio.sleep(options.every)
            await phone.wait_for(options.count, _PATIENCE_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await opened.close()
    is_whole = phone.shown == list(range(1, options.count + 1))
    verdict = "each once and in order" if is_whole else "WRONG"
    print(f"\n{options.count} pushed, {len(phone.shown)} shown, {verdict}")
    return is_whole


def main() -> int:
    """Start the gateway, and run the shop and the phone."""
    parser = argparse.ArgumentParser(
        prog="examples.push", description="Notifications for a phone that loses its network."
    )
    parser.add_argument(
        "--count", type=int, default=12, help="number of notifications, 3 or more (default 12)"
    )
    parser.add_argument(
        "--every", type=float, default=1.0, help="seconds between two notifications (default 1)"
    )
    parser.add_argument(
        "--redis", metavar="URL", help="URL of the bus; by default the gateway starts a private one"
    )
    options = parser.parse_args()
    secret = secrets.token_urlsafe(32)
    try:
        with running_gateway(_CONFIG, secret=secret, redis=options.redis) as gateway:
            return 0 if asyncio.run(play(gateway, options, secret)) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
