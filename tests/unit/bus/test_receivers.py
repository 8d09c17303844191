"""Check names and size limits of publications, and that the commands refuse what the gateway would refuse."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from wsgate import cli
from wsgate.bus.receivers import is_channel, is_user, publish_limit_bytes
from wsgate.node.runtime import RunningGateway, lock_port, runtime_directory

SECRET = "an example secret of more than 32 bytes"
LIMITS = {"default": 100, "chat": 20}

CHANNELS = ["news", "chat:42", "@42", "@me", "@a b", "é" * 100, "x" * 200, "a*b", "@" + "x" * 128]
NO_CHANNELS = [
    "",
    " ",
    "a b",
    "a\n",
    "a\x00",
    "a\x85",
    "a\u2003b",
    "{x}",
    "x" * 201,
    "x" * 300,
    "é" * 101,
    "@",
    "@" + "x" * 129,
    "@a\n",
    "\udcff",
    "@\udcff",
]


@pytest.mark.parametrize("name", CHANNELS)
def test_valid_channel_name_is_accepted(name: str) -> None:
    assert is_channel(name)


@pytest.mark.parametrize("name", NO_CHANNELS)
def test_name_that_no_client_can_subscribe_to_is_refused(name: str) -> None:
    assert not is_channel(name)


@pytest.mark.parametrize(
    ("user", "is_valid"), [("7", True), ("é" * 64, True), ("é" * 65, False), ("", False)]
)
def test_user_id_is_valid_with_1_to_128_bytes(user: str, is_valid: bool) -> None:
    assert is_user(user) is is_valid


@pytest.mark.parametrize(
    ("channel", "limit_bytes"),
    [
        ("news", 100),
        ("default:x", 100),
        ("chat:1", 20),
        ("chat", 100),
        ("nope:1", None),
        ("@7", 20),
        (":x", None),
    ],
)
def test_size_limit_of_a_channel_is_that_of_its_namespace(channel: str, limit_bytes: int | None) -> None:
    assert publish_limit_bytes(LIMITS, channel) == limit_bytes


def test_unconfigured_namespace_has_the_common_size_limit_in_development() -> None:
    assert publish_limit_bytes({**LIMITS, "*": 7}, "nope:1") == 7


# --- the commands -------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the runtime directory of a gateway whose lock this process holds, and which has no bus."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("WSGATE_AUTH__HMAC_SECRET", SECRET)
    monkeypatch.setenv("WSGATE_TOKEN", "ignored")
    running = RunningGateway(
        pid=1,
        node="n",
        port=8000,
        url="ws://127.0.0.1:1/ws",
        admin_port=1,
        bus_url=f"unix://{tmp_path}/nowhere.sock",
        prefix="wsgate",
        secret="",
        publish_limits=LIMITS,
    )
    running.write(runtime_directory({"RUNTIME_DIRECTORY": str(tmp_path)}))
    descriptor = lock_port(tmp_path, 8000)
    assert descriptor is not None
    yield tmp_path
    os.close(descriptor)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of a command."""
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("channel", [*(name for name in NO_CHANNELS if "\x00" not in name), "@me", "nope:1"])
def test_publish_command_refuses_an_invalid_or_unconfigured_channel(
    directory: Path, capsys: pytest.CaptureFixture[str], channel: str
) -> None:
    code, out, err = run(capsys, "publish", "--", channel, "1")
    assert (code, out) == (2, "")
    assert err.startswith("wsgate: ") and err.count("\n") == 1
    assert err.isascii() or "é" in err


@pytest.mark.parametrize(
    ("channel", "size_bytes"), [("news", 101), ("chat:1", 21), ("@7", 21), ("news", 100_000)]
)
def test_publish_command_refuses_data_above_the_size_limit_of_the_channel(
    directory: Path, capsys: pytest.CaptureFixture[str], channel: str, size_bytes: int
) -> None:
    code, out, err = run(capsys, "publish", channel, "x" * size_bytes)
    assert (code, out) == (2, "")
    assert err.startswith(f"wsgate: too large: the data has {size_bytes} bytes, and {channel} takes ")


@pytest.mark.parametrize(("channel", "size_bytes"), [("news", 100), ("chat:1", 20), ("@7", 20)])
def test_publish_command_sends_data_at_the_size_limit_of_the_channel(
    directory: Path, capsys: pytest.CaptureFixture[str], channel: str, size_bytes: int
) -> None:
    """No bus exists, so the command fails at the connection to the bus."""
    code, _, err = run(capsys, "publish", channel, "x" * size_bytes)
    assert code == 1
    assert "the bus at unix://" in err


@pytest.mark.parametrize("flags", [("--prefix", ""), ("--prefix", "a b"), ("--prefix", "x" * 33)])
def test_publish_command_refuses_an_invalid_bus_prefix(
    directory: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    code, _, err = run(capsys, "publish", "--redis", "unix:///nowhere", *flags, "news", "1")
    assert code == 2 and "bus.prefix" in err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--user", ""), "--user"),
        (("--user", "x" * 129), "--user"),
        (("--user", "a\nb"), "--user"),
        (("--user", "\udcff"), "--user"),
        (("--user", "7", "--ttl", "0s"), "--ttl"),
        (("--user", "7", "--ttl", "0"), "--ttl"),
        (("--user", "7", "--ttl", "999ms"), "--ttl"),
        (("--user", "7", "--ttl", "999999999999999h"), "--ttl"),
        (("--user", "7", "--ttl", "soon"), "--ttl"),
        (("--user", "7", "--subscribe", "*bad*"), "--subscribe"),
        (("--user", "7", "--subscribe", ""), "--subscribe"),
        (("--user", "7", "--subscribe", "@me"), "--subscribe"),
        (("--user", "7", "--publish", "a*b"), "--publish"),
        (("--user", "7", "--publish", "a b"), "--publish"),
        (("--user", "7", "--channel", "news*"), "--channel"),
        (("--user", "7", "--channel", "@7"), "--channel"),
        (("--user", "7", "--channel", ""), "--channel"),
        (("--user", "7", "--for-channel", ""), "--for-channel"),
        (("--user", "7", "--for-channel", "a b"), "--for-channel"),
    ],
)
def test_token_command_refuses_flags_that_would_make_an_invalid_token(
    directory: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], named: str
) -> None:
    code, out, err = run(capsys, "token", *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"wsgate: {named}: ") and err.count("\n") == 1


def test_token_command_adds_the_configured_audience_and_issuer(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSGATE_AUTH__AUDIENCE", "app")
    monkeypatch.setenv("WSGATE_AUTH__ISSUER", "https://issuer.example")
    code, out, _ = run(
        capsys, "token", "--user", "7", "--ttl", "1s", "--subscribe", "chat:*", "--channel", "news"
    )
    claims = jwt.decode(
        out.strip(), SECRET, ["HS256"], audience="app", options={"verify_exp": False, "verify_iat": False}
    )
    assert code == 0
    assert (claims["aud"], claims["iss"], claims["sub"]) == ("app", "https://issuer.example", "7")
    assert claims["exp"] == claims["iat"] + 1
    assert (claims["subscribe"], claims["channels"]) == (["chat:*"], ["news"])


def test_listen_command_refuses_a_count_below_zero(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "listen", "--count", "-1", "news")
    assert code == 2 and "--count" in err


def test_size_limits_are_written_to_the_file_of_a_running_gateway(directory: Path) -> None:
    [file] = directory.glob("gateway-*.json")
    assert json.loads(file.read_text())["publish_limits"] == LIMITS
