"""The key set of the issuer, fetched here so that no shard ever waits for HTTP, and posted for all of them.

One fetch at a time: at the start, every five minutes, and when a shard has met a kid that no key has, but
not more than once in `COOLDOWN_S`, whatever strangers put into their tokens. What was fetched last stays in
force while the issuer is away. The URL is the operator's and nothing else's; a redirect is a failure, and
so is an answer that is too large, too slow or no key set.

Source: RFC 7517; S19 in SECURITY.md for what others got wrong here.
"""

import asyncio
import http.client
import random
import time
from collections.abc import Callable, Iterable
from typing import Final
from urllib.error import URLError
from urllib.request import (
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    UnknownHandler,
)

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from wsgate.auth import parse_jwks
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
_CHUNK_BYTES: Final = 16 * 1024


class KeySetFetcher:
    """Keeps the board of the key set up to date.

    Args:
        url: Where the set is: https, or http on this machine.
        block: Where shards count the kids they want.
        board: Where the set is posted.
        get: Fetches; in a thread.

    Attributes:
        fetched: Sets that were posted.
        failed: Attempts that gave none.
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
        self.fetched = 0
        self.failed = 0

    async def run(self) -> None:
        """Fetch when it is time; until cancelled."""
        loop, retry_s = asyncio.get_running_loop(), RETRY_FIRST_S
        due_s = asked_s = loop.time()
        wanted = self._wanted()
        while True:
            while loop.time() < due_s:
                await asyncio.sleep(LOOK_S)
                if self._wanted() > wanted:
                    due_s = min(due_s, asked_s + COOLDOWN_S)
            # What is wanted from here on this fetch may come too early for.
            asked_s, wanted = loop.time(), self._wanted()
            try:
                document = await asyncio.to_thread(self._get, self._url)
                if not parse_jwks(document):
                    raise SettingsError("no key in it verifies tokens")
            except (BackendError, SettingsError) as error:
                self.failed += 1
                self._log.warning("keys_not_fetched", why=str(error))
                due_s = loop.time() + retry_s * random.uniform(0.5, 1.5)  # noqa: S311 - spreading
                retry_s = min(RETRY_MOST_S, retry_s * 2)
                continue
            self._board.post(document)
            self.fetched += 1
            retry_s = RETRY_FIRST_S
            due_s = loop.time() + REFRESH_S * random.uniform(0.9, 1.1)  # noqa: S311 - spreading

    def _wanted(self) -> int:
        """Kids that shards have asked for, ever."""
        regions = [self._block.shard(number) for number in range(self._block.shards)]
        return sum(region["keys_wanted"] for region in (*regions, self._block.retired))


class KeySetCollector(Collector):
    """What became of the fetches, for Prometheus."""

    def __init__(self, fetcher: KeySetFetcher) -> None:
        self._fetcher = fetcher

    def collect(self) -> Iterable[Metric]:
        """One family."""
        text = "Attempts to fetch the issuer's keys, by what became of them."
        family = CounterMetricFamily("wsgate_key_set_fetches", text, labels=["outcome"])
        family.add_metric(["fetched"], self._fetcher.fetched)
        family.add_metric(["failed"], self._fetcher.failed)
        return [family]


def fetch(url: str) -> bytes:
    """The document at a URL. Blocks; `FETCH_S` at most, or little longer.

    Raises:
        BackendError: It cannot be had; the text holds nothing that was answered.
    """
    # Put together by hand: the ready-made one also opens files and data URLs, and follows redirects.
    opener = OpenerDirector()
    for handler in (HTTPHandler(), HTTPSHandler(), UnknownHandler()):
        opener.add_handler(handler)
    end_s = time.monotonic() + FETCH_S
    headers = {"Accept": "application/jwk-set+json, application/json"}
    try:
        request = Request(url, headers=headers)  # noqa: S310 - no other scheme has a handler
        with opener.open(request, timeout=FETCH_S) as response:
            if response.status != 200:
                raise BackendError(f"answered {response.status}", temporary=True)
            return _body(response, end_s)
    except URLError as error:
        raise BackendError(f"cannot be reached: {error.reason}", temporary=True) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BackendError(f"cannot be read: {type(error).__name__}", temporary=True) from None


def _body(response: http.client.HTTPResponse, end_s: float) -> bytes:
    body = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        body += chunk
        if len(body) > DOCUMENT_LIMIT_BYTES:
            raise BackendError(f"larger than {DOCUMENT_LIMIT_BYTES} bytes", temporary=True)
        if time.monotonic() > end_s:
            raise BackendError(f"not complete within {FETCH_S:g} s", temporary=True)
    return bytes(body)
