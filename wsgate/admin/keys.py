"""Fetch the key set of the issuer over HTTP, and post it for all shards, so that no shard waits for HTTP.

One fetch runs at a time: at the start, every five minutes, and when a shard has seen a kid that no key has,
but at most once in `COOLDOWN_S`, whatever clients put into their tokens. The last fetched set stays in use
while the issuer cannot be reached. The URL comes only from the configuration. A redirect is a failure, and so
is a response that is too large, too slow or no key set.

Source: RFC 7517; S19 in docs/security.md for what others got wrong here.
"""

import asyncio
import http.client
import io
import queue
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, cast
from urllib.parse import urlsplit

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from wsgate import __version__
from wsgate.auth.jwks import KeySet, PassedOver, parse_jwks, read_jwks
from wsgate.errors import BackendError, SettingsError
from wsgate.log import Log
from wsgate.statistics import Board, StatisticsBlock

__all__ = ["KeySetCollector", "KeySetFetcher", "fetch"]

REFRESH_S: Final = 300.0
COOLDOWN_S: Final = 10.0
RETRY_FIRST_S: Final = 1.0
RETRY_MOST_S: Final = 30.0
FETCH_S: Final = 10.0
DOCUMENT_LIMIT_BYTES: Final = 256 * 1024
LOOK_S: Final = 0.25
_LISTED: Final = 16  # the most unusable keys in a log line
_CHUNK_BYTES: Final = 16 * 1024


class KeySetFetcher:
    """Fetch the key set again and again, and keep the board up to date.

    Args:
        url: The URL of the set: https, or http on this machine.
        block: The statistics, in which shards count the unknown kids that they have seen.
        board: The board for the shards.
        get: Fetches the document at a URL; called in a thread. None: `fetch`.

    Attributes:
        fetched: Key sets with a usable key that were posted.
        failed: Failed attempts.
    """

    def __init__(
        self,
        url: str,
        block: StatisticsBlock,
        board: Board,
        get: Callable[[str], bytes] | None = None,
    ) -> None:
        self._url = url
        self._block = block
        self._board = board
        self._get = get or fetch
        self._log = Log("admin")
        self._passed_over: tuple[PassedOver, ...] = ()  # the keys of the last log line
        self.fetched = 0
        self.failed = 0

    async def run(self) -> None:
        """Fetch the key set whenever a fetch is due, until cancelled."""
        loop, retry_s = asyncio.get_running_loop(), RETRY_FIRST_S
        due_s = asked_s = loop.time()
        wanted = self._wanted()
        while True:
            while loop.time() < due_s:
                await asyncio.sleep(LOOK_S)
                if self._wanted() > wanted:
                    due_s = min(due_s, asked_s + COOLDOWN_S)
            # A kid that a shard requests after this moment may be missing from the document of this fetch.
            asked_s, wanted = loop.time(), self._wanted()
            try:
                document = await asyncio.to_thread(self._get, self._url)
                self._judge(document)
            except (BackendError, SettingsError) as error:
                self.failed += 1
                self._log.warning("key_set_fetch_failed", why=str(error))
                due_s = loop.time() + retry_s * random.uniform(0.5, 1.5)  # noqa: S311 - spreading
                retry_s = min(RETRY_MOST_S, retry_s * 2)
                continue
            self._board.post(document)
            self.fetched += 1
            retry_s = RETRY_FIRST_S
            due_s = loop.time() + REFRESH_S * random.uniform(0.9, 1.1)  # noqa: S311 - spreading

    def _judge(self, document: bytes) -> None:
        """Log the unusable keys of a set; raise SettingsError if no key is usable.

        A set without a usable key does not replace a set that has one. If no set with a usable key is posted,
        the new set is posted, so that shards refuse a token that names one of its keys permanently. Otherwise
        such a token would be refused as temporary, again and again.
        """
        found = read_jwks(document)
        if found.passed_over != self._passed_over:
            self._passed_over = found.passed_over
            if found.passed_over:
                self._log.warning("key_set_keys_ignored", count=len(found.passed_over), keys=_listed(found))
        if found.keys:
            return
        posted = self._board.read()
        if found.passed_over and (posted is None or (posted[1] != document and not parse_jwks(posted[1]))):
            self._board.post(document)
        raise SettingsError("no key of the set can verify tokens")

    def _wanted(self) -> int:
        """Count the fetches that shards have requested for unknown kids, since the start of the node."""
        regions = [self._block.shard(number) for number in range(self._block.shards)]
        return sum(region["unknown_key_ids_requested"] for region in (*regions, self._block.retired))


def _listed(found: KeySet) -> str:
    """List the unusable keys of a set, each with its reason, for one log line."""
    rows = [str(each) for each in found.passed_over[:_LISTED]]
    more = len(found.passed_over) - len(rows)
    return "; ".join(rows) + (f"; and {more} more" if more else "")


class KeySetCollector(Collector):
    """Report the number of fetches of the key set by outcome, as a Prometheus metric."""

    def __init__(self, fetcher: KeySetFetcher) -> None:
        self._fetcher = fetcher

    def collect(self) -> Iterable[Metric]:
        """Return the counter of fetches, by outcome."""
        text = "Attempts to fetch the issuer's key set, by outcome: fetched or failed."
        family = CounterMetricFamily("wsgate_key_set_fetches", text, labels=["outcome"])
        family.add_metric(["fetched"], self._fetcher.fetched)
        family.add_metric(["failed"], self._fetcher.failed)
        return [family]


def fetch(url: str) -> bytes:
    """Fetch the document at a URL. Blocks for at most `FETCH_S` in all, whatever the server does.

    The deadline is absolute: for the resolver, connecting, TLS, headers and body together. The timeout of
    http.client is for each single receive, and never expires while one byte a second arrives. No proxy is
    used, and no redirect is followed.

    Raises:
        BackendError: The document could not be fetched. The text contains nothing of the response but its
            status.
    """
    end_s = time.monotonic() + FETCH_S
    headers = {
        "Accept": "application/jwk-set+json, application/json",
        "Connection": "close",
        "User-Agent": f"wsgate/{__version__}",
    }
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BackendError("is not a URL of http or https", temporary=True)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        connection = _Connection(parts.hostname, parts.port, end_s, is_tls=parts.scheme == "https")
    except (http.client.HTTPException, ValueError) as error:
        raise BackendError(f"cannot be read: {type(error).__name__}", temporary=True) from None
    try:
        connection.connect()
    except TimeoutError:
        raise BackendError(f"cannot be reached within {FETCH_S:g} s", temporary=True) from None
    except (OSError, ValueError) as error:
        raise BackendError(f"cannot be reached: {error}", temporary=True) from None
    try:
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        if response.status != 200:
            raise BackendError(f"answered {response.status}", temporary=True)
        return _body(response)
    except TimeoutError:
        raise BackendError(f"not complete within {FETCH_S:g} s", temporary=True) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BackendError(f"cannot be read: {type(error).__name__}", temporary=True) from None
    finally:
        connection.give_up()


def _body(response: http.client.HTTPResponse) -> bytes:
    """Read the body of a response; raise BackendError above `DOCUMENT_LIMIT_BYTES`."""
    body = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        body += chunk
        if len(body) > DOCUMENT_LIMIT_BYTES:
            raise BackendError(f"larger than {DOCUMENT_LIMIT_BYTES} bytes", temporary=True)
    return bytes(body)


# --- one absolute deadline ------------------------------------------------------------------------------


class _Connection(http.client.HTTPConnection):
    """An HTTP connection with one absolute deadline for all its operations.

    Args:
        host: The name or address of the server.
        port: The port; None: the default port of the scheme.
        end_s: The deadline, in seconds of the monotonic clock.
        is_tls: Whether to use TLS; the certificate and the host name are verified.
    """

    def __init__(self, host: str, port: int | None, end_s: float, *, is_tls: bool) -> None:
        self.default_port = 443 if is_tls else 80  # http.client leaves this port out of the Host header
        super().__init__(host, port or self.default_port)
        self._end_s = end_s
        self._connected: socket.socket | None = None
        self._context = ssl.create_default_context() if is_tls else None

    def connect(self) -> None:
        """Connect to the first address that answers, and complete the TLS handshake where TLS is used.

        The addresses are tried one after another. Each one gets an equal share of the time that is left, so
        that an address that drops all packets leaves time for the next one. The deadline stays the same.
        """
        fault: OSError = TimeoutError()
        addresses = _addresses(self.host, self.port, self._end_s)
        for tried, (family, kind, protocol, _, address) in enumerate(addresses):
            share_end_s = time.monotonic() + _left_s(self._end_s) / (len(addresses) - tried)
            plain = socket.socket(family, kind, protocol)
            try:
                plain.settimeout(_left_s(share_end_s))
                plain.connect(address)
                if self._context is not None:
                    plain.settimeout(_left_s(share_end_s))
                    plain = self._context.wrap_socket(plain, server_hostname=self.host)
            except OSError as error:
                plain.close()
                fault = error
                continue
            # http.client uses only the methods that `_TimedSocket` has.
            self.sock = cast(socket.socket, _TimedSocket(plain, self._end_s))
            self._connected = plain
            return
        raise fault

    def give_up(self) -> None:
        """Close the socket, also with unread data."""
        if self._connected is not None:
            self._connected.close()


class _TimedSocket:
    """The part of a socket that http.client uses; every call ends at the deadline."""

    def __init__(self, connected: socket.socket, end_s: float) -> None:
        self._connected = connected
        self._end_s = end_s

    def sendall(self, data: bytes) -> None:
        """Send all the data before the deadline."""
        self._connected.settimeout(_left_s(self._end_s))
        self._connected.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file that reads what the socket receives; closing it closes no socket."""
        return io.BufferedReader(_TimedReader(self._connected, self._end_s))

    def close(self) -> None:
        """Do nothing: http.client closes the socket before it has read the body from the file."""


class _TimedReader(io.RawIOBase):
    """A raw file that reads from a socket until the deadline."""

    def __init__(self, connected: socket.socket, end_s: float) -> None:
        super().__init__()
        self._connected = connected
        self._end_s = end_s

    def readable(self) -> bool:
        """Return True: the reader can always be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive what has arrived, or wait for it until the deadline."""
        self._connected.settimeout(_left_s(self._end_s))
        return self._connected.recv_into(buffer)


def _left_s(end_s: float) -> float:
    """Return the seconds until a deadline; raise TimeoutError when it has passed."""
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _addresses(host: str, port: int, end_s: float) -> list[Any]:
    """Resolve a name with `getaddrinfo`; raise TimeoutError at the deadline.

    A resolver cannot be interrupted. Its thread is left to its own time-outs, which end it, too.
    """
    found: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            found.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            found.put(error if isinstance(error, OSError) else OSError("the host name is not valid"))

    threading.Thread(target=resolve, name="wsgate-resolve", daemon=True).start()
    try:
        answer = found.get(timeout=_left_s(end_s))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, OSError):
        raise answer
    return answer
