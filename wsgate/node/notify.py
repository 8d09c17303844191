"""What systemd wants to hear. Source: sd_notify(3)."""

import contextlib
import os
import socket

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send one line to the service manager; nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)
