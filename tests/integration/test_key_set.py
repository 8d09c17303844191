"""Fetch the key set of an issuer in one process for all shards: well, badly, and during rotation (S19)."""

import asyncio
import contextlib
import datetime
import ipaddress
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.client import Client, connected
from tests.support.gateway import Gateway, run_command, running_gateway, wait_until
from tests.support.issuer import ISSUER, Issuer, SigningKey, issuer, symmetric
from wsgate import __version__
from wsgate.admin import keys as fetching
from wsgate.admin.keys import DOCUMENT_LIMIT_BYTES, KeySetFetcher, fetch
from wsgate.errors import BackendError
from wsgate.log import Log
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import Board, StatisticsBlock

WITHIN_S: Final = 20.0
OLD: Final = SigningKey("old")
NEW: Final = SigningKey("new", "EdDSA")


# --- one fetch ------------------------------------------------------------------------------------------


def test_fetch_returns_the_key_set_document_unchanged() -> None:
    with issuer(OLD, NEW) as served:
        assert fetch(served.url) == served.document()


def test_fetch_fails_on_every_redirect_and_does_not_follow_it() -> None:
    with issuer(OLD) as served, issuer(NEW) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            served.status, served.headers = status, {"Location": elsewhere.url}
            with pytest.raises(BackendError, match=f"answered {status}"):
                fetch(served.url)
        assert elsewhere.asked == []


@pytest.mark.parametrize("status", [201, 204, 401, 404, 500])
def test_fetch_fails_on_every_status_other_than_200(status: int) -> None:
    with issuer(OLD) as served:
        served.status = status
        with pytest.raises(BackendError):
            fetch(served.url)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "data:application/json,{}", "ftp://127.0.0.1/", "nonsense"]
)
def test_fetch_opens_no_file_data_or_ftp_url(url: str) -> None:
    with pytest.raises(BackendError):
        fetch(url)


def test_fetch_of_a_document_over_the_size_limit_fails() -> None:
    with issuer() as served:
        served.body = bytes(64 * DOCUMENT_LIMIT_BYTES)
        with pytest.raises(BackendError, match="larger than"):
            fetch(served.url)


def test_fetch_of_a_document_that_arrives_too_slowly_fails_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 0.5)
    with issuer(OLD) as served:
        served.pause_s = 0.02
        served.body = bytes(10_000)
        with pytest.raises(BackendError, match="not complete within"):
            fetch(served.url)


TRICKLE_S: Final = 0.05
TRICKLED: Final = 200
"""The stub closes after this many bytes, so that a fetch without a deadline has another error."""


@contextlib.contextmanager
def trickling(first: bytes, rest: bytes, *, pause_s: float = TRICKLE_S) -> Iterator[int]:
    """Run a server that sends `first` at once and then single bytes of `rest`; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as peer:
                peer.recv(65536)
                peer.sendall(first)
                for place in range(TRICKLED):
                    if done.wait(pause_s):
                        return
                    peer.sendall(rest[place % len(rest) : place % len(rest) + 1])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            listener.close()
            thread.join(10)


HEAD_OF_ANSWER: Final = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("scheme", "first", "rest"),
    [
        pytest.param("http", b"", b"H", id="silence"),
        pytest.param("http", b"", HEAD_OF_ANSWER, id="status line"),
        pytest.param("http", HEAD_OF_ANSWER, b"X-Padding: x\r\n", id="headers"),
        pytest.param("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="interim answers"),
        pytest.param("http", HEAD_OF_ANSWER + b"Content-Length: 9999\r\n\r\n", b" ", id="body"),
        pytest.param("http", HEAD_OF_ANSWER + b"\r\n", b" ", id="body without length"),
        pytest.param(
            "http", HEAD_OF_ANSWER + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", id="chunks"
        ),
        pytest.param("https", b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"\x00", id="TLS handshake"),
    ],
)
def test_fetch_from_a_server_that_trickles_at_any_stage_fails_at_one_deadline(
    scheme: str, first: bytes, rest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 0.4)
    pause_s = 1.0 if not first and rest == b"H" else TRICKLE_S
    with trickling(first, rest, pause_s=pause_s) as port:
        with pytest.raises(BackendError, match=r"within 0\.4 s"):
            fetch(f"{scheme}://127.0.0.1:{port}/keys")


def test_fetch_with_a_resolver_that_hangs_fails_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(fetching, "FETCH_S", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(WITHIN_S) and [])
    try:
        with pytest.raises(BackendError, match=r"cannot be reached within 0\.2 s"):
            fetch("http://issuer.example/keys")
    finally:
        release.set()


def test_fetch_request_has_user_agent_host_accept_and_the_query_of_the_url() -> None:
    with issuer(OLD) as served:
        fetch(served.url.replace("/keys.json", "/keys.json?tenant=7"))
    assert served.asked == ["/keys.json?tenant=7"]
    (sent,) = served.sent
    assert sent["User-Agent"] == f"wsgate/{__version__}"
    assert sent["Host"] == served.url.split("/")[2]
    assert "jwk-set" in sent["Accept"]


def test_fetch_tries_the_second_address_when_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with issuer(OLD) as served:
        port = int(served.url.split(":")[2].split("/")[0])
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        addresses = [(*row, ("127.0.0.1", 1)), (*row, ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        assert fetch(served.url) == served.document()


@contextlib.contextmanager
def unreachable() -> Iterator[int]:
    """Yield a port that accepts no connection: its accept queue is full, so Linux drops each new SYN."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = opened.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("dead", [1, 3])
def test_fetch_leaves_time_for_an_address_behind_ones_that_never_answer(
    dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 4.0)
    with issuer(OLD) as served, unreachable() as silent:
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        port = int(served.url.split(":")[2].split("/")[0])
        addresses = [(*row, ("127.0.0.1", each)) for each in (*[silent] * dead, port)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        assert fetch(served.url) == served.document()


def test_fetch_leaves_time_for_an_address_behind_one_that_never_completes_tls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 2.0)
    with trickling(b"", b"H", pause_s=WITHIN_S) as silent:
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        addresses = [(*row, ("127.0.0.1", each)) for each in (silent, 1)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        with pytest.raises(BackendError, match="refused"):  # by the second address
            fetch("https://issuer.example/keys")


def test_fetch_from_three_addresses_that_never_answer_fails_at_one_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 0.4)
    with unreachable() as silent:
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        addresses = [(*row, ("127.0.0.1", silent))] * 3
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        with pytest.raises(BackendError, match=r"cannot be reached within 0\.4 s"):
            fetch("http://issuer.example/keys")


def test_fetch_uses_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with issuer(OLD) as served:
        assert fetch(served.url) == served.document()


def test_fetch_refuses_a_self_signed_certificate(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as peer:
                context.wrap_socket(peer, server_side=True).close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(BackendError, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
            fetch(f"https://127.0.0.1:{listener.getsockname()[1]}/keys")
        thread.join(10)


def self_signed(directory: Path) -> Path:
    """Write a self-signed certificate for 127.0.0.1 and its key into one file; return the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = directory / "server.pem"
    file.write_bytes(text + certificate.public_bytes(Encoding.PEM))
    return file


def test_fetch_error_repeats_nothing_of_the_answer() -> None:
    with pytest.raises(BackendError, match="cannot be reached"):
        fetch("http://127.0.0.1:1/")
    with issuer() as served:
        served.headers = {"Content-Encoding": "hunter2"}
        served.status = 500
        with pytest.raises(BackendError) as refused:
            fetch(served.url)
        assert "hunter2" not in str(refused.value)


# --- the times of fetches -------------------------------------------------------------------------------


class FetcherRig:
    """A fetcher whose HTTP requests are replaced by a function of the test."""

    def __init__(self) -> None:
        self.block = StatisticsBlock.create(LAYOUT, 2)
        self.board = Board(1 << 16)
        self.asked = 0
        self.answer: Callable[[], bytes] = lambda: Issuer.document(self.issuer)
        self.issuer = Issuer()
        self.issuer.keys = [OLD]
        self.fetcher = KeySetFetcher("https://issuer.example/", self.block, self.board, self._get)

    def _get(self, url: str) -> bytes:
        self.asked += 1
        return self.answer()

    def run(self, main: Callable[[], Any]) -> None:
        """Run the fetcher while `main` runs."""

        async def both() -> None:
            running = asyncio.ensure_future(self.fetcher.run())
            try:
                await main()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        asyncio.run(both())

    def has_fetched(self, sets: int) -> bool:
        return self.fetcher.fetched >= sets

    def has_failed_since(self, failed: int) -> bool:
        return self.fetcher.failed > failed

    async def until(self, claim: Callable[[], object]) -> None:
        end_s = time.monotonic() + WITHIN_S
        while not claim():
            assert time.monotonic() < end_s
            await asyncio.sleep(0.01)


def symmetric_only() -> bytes:
    made = Issuer()
    made.keys = [symmetric("shared", b"x" * 32)]
    return made.document()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOOK_S", 0.01), ("COOLDOWN_S", 0.3), ("RETRY_FIRST_S", 0.01)):
        monkeypatch.setattr(fetching, name, value)


@pytest.mark.usefixtures("quick")
def test_key_set_is_fetched_at_the_start_and_then_at_most_once_per_cooldown() -> None:
    rig = FetcherRig()

    async def main() -> None:
        await rig.until(lambda: rig.fetcher.fetched == 1)
        assert rig.board.read() == (rig.board.version, rig.issuer.document())
        for _ in range(50):  # a flood of invented key ids
            rig.block.shard(1).add("unknown_key_ids_requested")
            await asyncio.sleep(0.02)
        assert 3 <= rig.asked <= 6, "the flood caused more fetches than the cooldown allows"

    rig.run(main)


@pytest.mark.usefixtures("quick")
def test_failed_fetches_keep_the_last_key_set_and_are_retried() -> None:
    rig = FetcherRig()

    def fail() -> bytes:
        raise BackendError("away", temporary=True)

    async def main() -> None:
        await rig.until(lambda: rig.fetcher.fetched == 1)
        posted = rig.board.read()
        for answer in (fail, lambda: b"<html>", lambda: b"{}", symmetric_only):
            failed = rig.fetcher.failed
            rig.answer = answer
            rig.block.shard(0).add("unknown_key_ids_requested")
            await rig.until(partial(rig.has_failed_since, failed))
            assert rig.board.read() == posted
        rig.issuer.keys = [NEW]
        rig.answer = rig.issuer.document
        await rig.until(lambda: rig.fetcher.fetched == 2)
        assert rig.board.read() == (rig.board.version, rig.issuer.document())

    rig.run(main)


@pytest.mark.usefixtures("quick")
def test_no_second_fetch_starts_while_one_hangs() -> None:
    rig, release = FetcherRig(), threading.Event()

    def hang() -> bytes:
        release.wait(WITHIN_S)
        return rig.issuer.document()

    rig.answer = hang

    async def main() -> None:
        for _ in range(50):
            rig.block.shard(0).add("unknown_key_ids_requested")
            await asyncio.sleep(0.01)
        assert rig.asked == 1
        release.set()
        await rig.until(lambda: rig.fetcher.fetched >= 1)

    rig.run(main)


def passed_over_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        vars(record)["fields"]["keys"]
        for record in caplog.records
        if record.message == "key_set_keys_ignored"
    ]


@pytest.mark.usefixtures("quick")
def test_unusable_keys_are_logged_once_per_key_set(caplog: pytest.LogCaptureFixture) -> None:
    rig = FetcherRig()
    encryption = NEW.jwk(kid="for-encryption", use="enc")
    rig.issuer.keys = [OLD, encryption]

    async def fetched(times: int) -> None:
        for _ in range(times):
            wanted = rig.fetcher.fetched + 1
            rig.block.shard(0).add("unknown_key_ids_requested")
            await rig.until(partial(rig.has_fetched, wanted))

    async def main() -> None:
        await rig.until(lambda: rig.fetcher.fetched == 1)
        await fetched(2)
        assert passed_over_lines(caplog) == ["for-encryption: its use is not sig"]
        rig.fetcher._log = Log("admin-test")  # a new log, without the limit of one line a second
        rig.issuer.keys = [OLD, encryption, symmetric("shared\nkey", b"x" * 32)]
        await fetched(2)

    with caplog.at_level("INFO"):
        rig.run(main)
    first, second = passed_over_lines(caplog)
    assert second == first + "; shared\nkey: its kty is not RSA, EC or OKP"
    assert OLD.kid not in second


@pytest.mark.usefixtures("quick")
def test_key_set_without_usable_keys_is_posted_only_if_there_was_none_before() -> None:
    rig = FetcherRig()
    weak = SigningKey("weak", "RS256", rsa_bits=1024)
    rig.issuer.keys = [weak]

    async def main() -> None:
        await rig.until(lambda: rig.fetcher.failed >= 2)
        posted = rig.board.read()
        assert posted is not None and posted[1] == rig.issuer.document()
        assert rig.fetcher.fetched == 0
        await rig.until(lambda: rig.fetcher.failed >= 3)
        assert rig.board.version == posted[0], "the same set was posted twice"
        rig.issuer.keys = [OLD]
        await rig.until(lambda: rig.fetcher.fetched == 1)
        good = rig.board.read()
        failed = rig.fetcher.failed
        rig.issuer.keys = [weak]
        rig.block.shard(0).add("unknown_key_ids_requested")
        await rig.until(partial(rig.has_failed_since, failed))
        assert rig.board.read() == good

    rig.run(main)


# --- a whole gateway ------------------------------------------------------------------------------------


@contextlib.contextmanager
def gateway_of(served: Issuer, *flags: str) -> Iterator[Gateway]:
    environ = {"WSGATE_AUTH__JWKS_URL": served.url, "WSGATE_AUTH__ISSUER": ISSUER}
    with running_gateway(*flags, environ=environ, is_dev=False) as gateway:
        yield gateway


def status_of(gateway: Gateway, token: str) -> int:
    """Return the status of the answer to a handshake with this token."""
    try:
        with connect(gateway.ws_url, additional_headers={"Authorization": f"Bearer {token}"}):
            return 101
    except InvalidStatus as refused:
        if refused.response.status_code == 503:
            assert 1 <= int(refused.response.headers["Retry-After"]) <= 5
        return refused.response.status_code


@pytest.mark.slow
def test_rotated_keys_are_503_until_fetched_and_open_connections_stay() -> None:
    with issuer(OLD) as served, gateway_of(served, "--shards", "2") as gateway:
        assert status_of(gateway, OLD.token()) == 101
        with connected(gateway.ws_url, 1, token=OLD.token()) as (client,):
            assert client.receive()["ch"] == "@me"
            served.keys = [OLD, NEW]
            assert status_of(gateway, NEW.token()) == 503, "a token with a new key was not answered 503"
            wait_until("the new key is fetched", lambda: status_of(gateway, NEW.token()) == 101, WITHIN_S)
            served.keys = [NEW]
            assert status_of(gateway, SigningKey("other").token()) == 503
            wait_until("the old key is gone", lambda: status_of(gateway, OLD.token("43")) != 101, WITHIN_S)
            assert client.ask("ping") == {"op": "pong"}, "an open connection was closed"
        assert gateway.metric("wsgate_key_set_fetches_total", outcome="fetched") >= 3
        assert set(served.asked) == {"/keys.json"}


@pytest.mark.slow
def test_tokens_of_each_algorithm_are_accepted_and_an_unusable_key_is_refused_finally() -> None:
    strong = [SigningKey(name.lower(), name) for name in ("RS512", "PS384", "ES384", "ES512")]
    weak = SigningKey("weak", "RS256", rsa_bits=1024)
    with issuer(*strong, weak) as served, gateway_of(served) as gateway:
        assert [status_of(gateway, key.token()) for key in strong] == [101] * 4
        weakly_signed = strong[0].token(kid="weak")
        assert status_of(gateway, weakly_signed) == 401
        protocols = ["wsgate.v1.json", f"wsgate.bearer.{weakly_signed}"]
        with connect(gateway.ws_url, subprotocols=protocols) as socket:  # type: ignore[arg-type]
            _, code = Client(socket).end()
        assert code == 4501
        (line,) = [line for line in gateway.lines if "key_set_keys_ignored" in line]
        assert "weak: RS256 needs an RSA public key of at least 2048 bits" in line
        refusals = partial(gateway.metric, "wsgate_token_refusals_total", fault="unusable_key")
        wait_until("both are counted", lambda: refusals() == 2)


@pytest.mark.slow
def test_token_of_a_browser_with_an_unknown_key_is_closed_4001_and_may_reconnect() -> None:
    with issuer(OLD) as served, gateway_of(served) as gateway:
        protocols = ["wsgate.v1.json", f"wsgate.bearer.{NEW.token()}"]
        with connect(gateway.ws_url, subprotocols=protocols) as socket:  # type: ignore[arg-type]
            said, code = Client(socket).end()
        assert code == 4001
        assert said[-1]["op"] == "bye" and said[-1]["reason"] == "key_awaited" and said[-1]["reconnect"]


@pytest.mark.slow
def test_node_is_ready_after_the_first_key_set_which_survives_restarts_of_shard_and_admin() -> None:
    with issuer(OLD) as served:
        served.status = 500
        environ = {"WSGATE_AUTH__JWKS_URL": served.url, "WSGATE_AUTH__ISSUER": ISSUER}
        with running_gateway(environ=environ, is_dev=False, wait=False) as gateway:
            wait_until(
                "the node waits for keys",
                lambda: gateway.why_not_ready() == ["shard_0_keys_awaited"],
                WITHIN_S,
            )
            assert status_of(gateway, OLD.token()) == 503
            served.status = 200
            gateway.await_ready()
            assert status_of(gateway, OLD.token()) == 101
            served.status = 500
            os.kill(gateway.pid_of("wsgate-shard-0"), signal.SIGKILL)
            os.kill(gateway.pid_of("wsgate-admin"), signal.SIGKILL)
            wait_until("the successors have the keys", lambda: not gateway.why_not_ready(), WITHIN_S)
            assert status_of(gateway, OLD.token()) == 101


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "this is not a URL"),
        ("data:application/json,{}", "this is not a URL"),
        ("http://issuer.example/keys", "must be https"),
        ("https://user:hunter2@issuer.example/", "must not hold a password"),
        ("https://", "this is not a URL"),
        ("https://a b/", "this is not a URL"),
    ],
)
def test_invalid_key_set_url_stops_the_start_and_hides_its_password(
    tmp_path: Path, url: str, said: str
) -> None:
    environ = {"WSGATE_AUTH__JWKS_URL": url, "WSGATE_AUTH__ISSUER": ISSUER}
    done = run_command("check-config", directory=tmp_path, environ=environ, check=False)
    assert done.returncode == 2
    assert f"auth.jwks_url: {said}" in done.stderr
    assert "hunter2" not in done.stderr


def test_key_set_url_without_an_issuer_stops_the_start(tmp_path: Path) -> None:
    environ = {"WSGATE_AUTH__JWKS_URL": "https://issuer.example/keys"}
    done = run_command("check-config", directory=tmp_path, environ=environ, check=False)
    assert "auth.issuer: required with auth.jwks_url" in done.stderr
