"""Check which URLs a client accepts, which of them are on this machine, and what errors show of them."""

import pytest

from wsgate.client import Client
from wsgate.client.urls import carries_token, check_url, is_loopback, shown_url
from wsgate.errors import SettingsError

LONG_LABEL = "a" * 64


@pytest.mark.parametrize(
    "url",
    [
        "ws://h/ws",
        "wss://h:1/",
        "ws://h",
        "ws://h.example./ws?a=b",
        "ws://é.example/é",
        "ws://[::1]:8000/ws",
        "ws://user:password@h/ws",
        f"ws://{'a' * 63}.example/ws",
        "ws://my_host/ws",
    ],
)
def test_valid_websocket_url_is_accepted(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:8000",
        "http://h/ws",
        "ws://",
        "ws:///ws",
        "ws://h:0/",
        "ws://h:x/",
        "ws://h:99999/",
        "ws://h/#part",
        "ws://user@h/ws",
        "ws://a..b/ws",
        f"ws://{LONG_LABEL}/ws",
        f"ws://{LONG_LABEL}.example/ws",
        "ws://.example/ws",
        "ws://%00/ws",
        "ws://h h/ws",
        "ws://h/a b",
        "ws://h/\x00",
        "ws://h\n/ws",
        "ws://[::1/ws",
        "ws://[x]/ws",
        "ws://\ud800/ws",
    ],
)
def test_invalid_url_is_refused_when_the_client_is_created(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^url: must be ws://"):
        Client(url)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "app.localhost",
        "127.0.0.1",
        "127.8.9.10",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:0:0:1]",
        "user:password@localhost",
    ],
)
def test_url_of_this_machine_is_loopback(host: str) -> None:
    assert is_loopback(f"ws://{host}/ws")
    assert is_loopback(f"wss://{host}:8000/ws")


@pytest.mark.parametrize(
    "host",
    [
        "h",
        "localhost.example",
        "notlocalhost",
        "128.0.0.1",
        "10.0.0.1",
        "[::2]",
        "[::ffff:10.0.0.1]",
        "[fe80::1]",
        "localhost@h",
        "127.0.0.1.example",
    ],
)
def test_url_of_another_machine_is_not_loopback(host: str) -> None:
    assert not is_loopback(f"ws://{host}/ws")


def test_url_is_shown_without_password_and_query() -> None:
    assert shown_url("wss://user:secret@h:8000/ws?token=secret") == "wss://h:8000/ws"
    assert shown_url("ws://[::1]:8000/ws") == "ws://[::1]:8000/ws"


def test_token_in_the_query_of_a_url_is_detected() -> None:
    assert carries_token("ws://h/ws?ch=a&token=x")
    assert not carries_token("ws://h/ws?token=&ch=token")
