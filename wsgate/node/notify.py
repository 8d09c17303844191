"""Send state notifications to the service manager systemd. Source: sd_notify(3)."""

import contextlib
import os
import socket

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send assignments such as `READY=1` to systemd; do nothing if `NOTIFY_SOCKET` is not set."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)
