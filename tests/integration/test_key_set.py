"""The issuer's key set, fetched by one process for all shards: well, badly, and while keys rotate (S19)."""

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


def test_a_document_is_fetched_as_it_is() -> None:
    with issuer(OLD, NEW) as served:
        assert fetch(served.url) == served.document()


def test_a_redirect_is_not_followed() -> None:
    with issuer(OLD) as served, issuer(NEW) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            served.status, served.headers = status, {"Location": elsewhere.url}
            with pytest.raises(BackendError, match=f"answered {status}"):
                fetch(served.url)
        assert elsewhere.asked == []


@pytest.mark.parametrize("status", [201, 204, 401, 404, 500])
def test_any_other_answer_is_a_failure(status: int) -> None:
    with issuer(OLD) as served:
        served.status = status
        with pytest.raises(BackendError):
            fetch(served.url)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "data:application/json,{}", "ftp://127.0.0.1/", "nonsense"]
)
def test_no_other_scheme_is_opened(url: str) -> None:
    with pytest.raises(BackendError):
        fetch(url)


def test_a_huge_answer_is_not_read_to_its_end() -> None:
    with issuer() as served:
        served.body = bytes(64 * DOCUMENT_LIMIT_BYTES)
        with pytest.raises(BackendError, match="larger than"):
            fetch(served.url)


def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 0.5)
    with issuer(OLD) as served:
        served.pause_s = 0.02
        served.body = bytes(10_000)
        with pytest.raises(BackendError, match="not complete within"):
            fetch(served.url)


TRICKLE_S: Final = 0.05
TRICKLED: Final = 200
"""A stub gives up after so many bytes, so that a fetch without a deadline ends in another error."""


@contextlib.contextmanager
def trickling(first: bytes, rest: bytes, *, pause_s: float = TRICKLE_S) -> Iterator[int]:
    """The port of a server that answers at once with `first`, and then a byte of `rest` now and then."""
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
def test_a_server_that_trickles_is_given_up_at_one_deadline(
    scheme: str, first: bytes, rest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 0.4)
    pause_s = 1.0 if not first and rest == b"H" else TRICKLE_S
    with trickling(first, rest, pause_s=pause_s) as port:
        with pytest.raises(BackendError, match=r"within 0\.4 s"):
            fetch(f"{scheme}://127.0.0.1:{port}/keys")


def test_a_resolver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(fetching, "FETCH_S", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(WITHIN_S) and [])
    try:
        with pytest.raises(BackendError, match=r"cannot be reached within 0\.2 s"):
            fetch("http://issuer.example/keys")
    finally:
        release.set()


def test_the_request_names_its_user_agent_and_the_media_types_it_accepts() -> None:
    with issuer(OLD) as served:
        fetch(served.url.replace("/keys.json", "/keys.json?tenant=7"))
    assert served.asked == ["/keys.json?tenant=7"]
    (sent,) = served.sent
    assert sent["User-Agent"] == f"wsgate/{__version__}"
    assert sent["Host"] == served.url.split("/")[2]
    assert "jwk-set" in sent["Accept"]


def test_the_second_address_is_tried_when_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with issuer(OLD) as served:
        port = int(served.url.split(":")[2].split("/")[0])
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        addresses = [(*row, ("127.0.0.1", 1)), (*row, ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        assert fetch(served.url) == served.document()


@contextlib.contextmanager
def unreachable() -> Iterator[int]:
    """A port where no connection is established: the accept queue is full, so Linux drops each new SYN."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = opened.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("dead", [1, 3])
def test_addresses_that_never_answer_leave_time_for_the_one_that_does(
    dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 4.0)
    with issuer(OLD) as served, unreachable() as silent:
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        port = int(served.url.split(":")[2].split("/")[0])
        addresses = [(*row, ("127.0.0.1", each)) for each in (*[silent] * dead, port)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        assert fetch(served.url) == served.document()


def test_an_address_that_never_completes_tls_leaves_time_for_the_one_that_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 2.0)
    with trickling(b"", b"H", pause_s=WITHIN_S) as silent:
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        addresses = [(*row, ("127.0.0.1", each)) for each in (silent, 1)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        with pytest.raises(BackendError, match="refused"):  # by the second address
            fetch("https://issuer.example/keys")


def test_addresses_that_never_answer_are_given_up_at_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_S", 0.4)
    with unreachable() as silent:
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        addresses = [(*row, ("127.0.0.1", silent))] * 3
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        with pytest.raises(BackendError, match=r"cannot be reached within 0\.4 s"):
            fetch("http://issuer.example/keys")


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with issuer(OLD) as served:
        assert fetch(served.url) == served.document()


def test_a_certificate_of_no_trusted_authority_is_refused(tmp_path: Path) -> None:
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
    """A certificate of its own making for 127.0.0.1, and its key, in one file."""
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


def test_who_is_away_is_a_failure_and_nothing_of_the_answer_is_repeated() -> None:
    with pytest.raises(BackendError, match="cannot be reached"):
        fetch("http://127.0.0.1:1/")
    with issuer() as served:
        served.headers = {"Content-Encoding": "hunter2"}
        served.status = 500
        with pytest.raises(BackendError) as refused:
            fetch(served.url)
        assert "hunter2" not in str(refused.value)


# --- when it is fetched ---------------------------------------------------------------------------------


class Bench:
    """A fetcher whose fetches are the test's."""

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
        """Run it while `main` does."""

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
def test_it_is_fetched_at_once_and_then_only_when_it_is_wanted_and_not_too_often() -> None:
    bench = Bench()

    async def main() -> None:
        await bench.until(lambda: bench.fetcher.fetched == 1)
        assert bench.board.read() == (bench.board.version, bench.issuer.document())
        for _ in range(50):  # a flood of made-up kids
            bench.block.shard(1).add("unknown_key_ids_requested")
            await asyncio.sleep(0.02)
        assert 3 <= bench.asked <= 6, "a second of it costs no more than the cooldown allows"

    bench.run(main)


@pytest.mark.usefixtures("quick")
def test_while_the_issuer_is_away_what_was_fetched_stays_and_it_is_asked_again() -> None:
    bench = Bench()

    def fail() -> bytes:
        raise BackendError("away", temporary=True)

    async def main() -> None:
        await bench.until(lambda: bench.fetcher.fetched == 1)
        posted = bench.board.read()
        for answer in (fail, lambda: b"<html>", lambda: b"{}", symmetric_only):
            failed = bench.fetcher.failed
            bench.answer = answer
            bench.block.shard(0).add("unknown_key_ids_requested")
            await bench.until(partial(bench.has_failed_since, failed))
            assert bench.board.read() == posted
        bench.issuer.keys = [NEW]
        bench.answer = bench.issuer.document
        await bench.until(lambda: bench.fetcher.fetched == 2)
        assert bench.board.read() == (bench.board.version, bench.issuer.document())

    bench.run(main)


@pytest.mark.usefixtures("quick")
def test_a_fetch_that_hangs_is_the_only_one() -> None:
    bench, release = Bench(), threading.Event()

    def hang() -> bytes:
        release.wait(WITHIN_S)
        return bench.issuer.document()

    bench.answer = hang

    async def main() -> None:
        for _ in range(50):
            bench.block.shard(0).add("unknown_key_ids_requested")
            await asyncio.sleep(0.01)
        assert bench.asked == 1
        release.set()
        await bench.until(lambda: bench.fetcher.fetched >= 1)

    bench.run(main)


def passed_over_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        vars(record)["fields"]["keys"]
        for record in caplog.records
        if record.message == "key_set_keys_ignored"
    ]


@pytest.mark.usefixtures("quick")
def test_keys_that_cannot_be_used_are_logged_once_for_each_set(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    encryption = NEW.jwk(kid="for-encryption", use="enc")
    bench.issuer.keys = [OLD, encryption]

    async def fetched(times: int) -> None:
        for _ in range(times):
            wanted = bench.fetcher.fetched + 1
            bench.block.shard(0).add("unknown_key_ids_requested")
            await bench.until(partial(bench.has_fetched, wanted))

    async def main() -> None:
        await bench.until(lambda: bench.fetcher.fetched == 1)
        await fetched(2)
        assert passed_over_lines(caplog) == ["for-encryption: its use is not sig"]
        bench.fetcher._log = Log("admin-test")  # another second, as far as the log is concerned
        bench.issuer.keys = [OLD, encryption, symmetric("shared\nkey", b"x" * 32)]
        await fetched(2)

    with caplog.at_level("INFO"):
        bench.run(main)
    first, second = passed_over_lines(caplog)
    assert second == first + "; shared\nkey: its kty is not RSA, EC or OKP"
    assert OLD.kid not in second


@pytest.mark.usefixtures("quick")
def test_a_first_set_without_a_usable_key_is_posted_and_never_replaces_one_that_has_some() -> None:
    bench = Bench()
    weak = SigningKey("weak", "RS256", rsa_bits=1024)
    bench.issuer.keys = [weak]

    async def main() -> None:
        await bench.until(lambda: bench.fetcher.failed >= 2)
        posted = bench.board.read()
        assert posted is not None and posted[1] == bench.issuer.document()
        assert bench.fetcher.fetched == 0
        await bench.until(lambda: bench.fetcher.failed >= 3)
        assert bench.board.version == posted[0], "the same set is posted once"
        bench.issuer.keys = [OLD]
        await bench.until(lambda: bench.fetcher.fetched == 1)
        good = bench.board.read()
        failed = bench.fetcher.failed
        bench.issuer.keys = [weak]
        bench.block.shard(0).add("unknown_key_ids_requested")
        await bench.until(partial(bench.has_failed_since, failed))
        assert bench.board.read() == good

    bench.run(main)


# --- a whole gateway ------------------------------------------------------------------------------------


@contextlib.contextmanager
def gateway_of(served: Issuer, *flags: str) -> Iterator[Gateway]:
    environ = {"WSGATE_AUTH__JWKS_URL": served.url, "WSGATE_AUTH__ISSUER": ISSUER}
    with running_gateway(*flags, environ=environ, is_dev=False) as gateway:
        yield gateway


def status_of(gateway: Gateway, token: str) -> int:
    """What a handshake with this token is answered with."""
    try:
        with connect(gateway.ws_url, additional_headers={"Authorization": f"Bearer {token}"}):
            return 101
    except InvalidStatus as refused:
        if refused.response.status_code == 503:
            assert 1 <= int(refused.response.headers["Retry-After"]) <= 5
        return refused.response.status_code


@pytest.mark.slow
def test_keys_rotate_and_nobody_is_turned_away_for_good() -> None:
    with issuer(OLD) as served, gateway_of(served, "--shards", "2") as gateway:
        assert status_of(gateway, OLD.token()) == 101
        with connected(gateway.ws_url, 1, token=OLD.token()) as (client,):
            assert client.receive()["ch"] == "@me"
            served.keys = [OLD, NEW]
            assert status_of(gateway, NEW.token()) == 503, "its key is not here yet: come back"
            wait_until("it is", lambda: status_of(gateway, NEW.token()) == 101, WITHIN_S)
            served.keys = [NEW]
            assert status_of(gateway, SigningKey("other").token()) == 503
            wait_until("the old one is gone", lambda: status_of(gateway, OLD.token("43")) != 101, WITHIN_S)
            assert client.ask("ping") == {"op": "pong"}, "who is here stays"
        assert gateway.metric("wsgate_key_set_fetches_total", outcome="fetched") >= 3
        assert set(served.asked) == {"/keys.json"}


@pytest.mark.slow
def test_tokens_of_every_algorithm_come_in_and_one_that_names_an_unusable_key_is_refused_for_good() -> None:
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
def test_a_browsers_token_with_a_new_key_comes_back_and_is_not_told_to_stay_away() -> None:
    with issuer(OLD) as served, gateway_of(served) as gateway:
        protocols = ["wsgate.v1.json", f"wsgate.bearer.{NEW.token()}"]
        with connect(gateway.ws_url, subprotocols=protocols) as socket:  # type: ignore[arg-type]
            said, code = Client(socket).end()
        assert code == 4001
        assert said[-1]["op"] == "bye" and said[-1]["reason"] == "key_awaited" and said[-1]["reconnect"]


@pytest.mark.slow
def test_until_the_first_set_is_there_the_node_is_not_ready_and_it_outlives_the_admin() -> None:
    with issuer(OLD) as served:
        served.status = 500
        environ = {"WSGATE_AUTH__JWKS_URL": served.url, "WSGATE_AUTH__ISSUER": ISSUER}
        with running_gateway(environ=environ, is_dev=False, wait=False) as gateway:
            wait_until("it says so", lambda: gateway.why_not_ready() == ["shard_0_keys_awaited"], WITHIN_S)
            assert status_of(gateway, OLD.token()) == 503
            served.status = 200
            gateway.await_ready()
            assert status_of(gateway, OLD.token()) == 101
            served.status = 500
            os.kill(gateway.pid_of("wsgate-shard-0"), signal.SIGKILL)
            os.kill(gateway.pid_of("wsgate-admin"), signal.SIGKILL)
            wait_until("the successors have it", lambda: not gateway.why_not_ready(), WITHIN_S)
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
def test_a_url_that_is_not_for_this_stops_the_start(tmp_path: Path, url: str, said: str) -> None:
    environ = {"WSGATE_AUTH__JWKS_URL": url, "WSGATE_AUTH__ISSUER": ISSUER}
    done = run_command("check-config", directory=tmp_path, environ=environ, check=False)
    assert done.returncode == 2
    assert f"auth.jwks_url: {said}" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_key_set_needs_an_issuer(tmp_path: Path) -> None:
    environ = {"WSGATE_AUTH__JWKS_URL": "https://issuer.example/keys"}
    done = run_command("check-config", directory=tmp_path, environ=environ, check=False)
    assert "auth.issuer: required with auth.jwks_url" in done.stderr
