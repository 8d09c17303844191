"""Route the URLs of the admin port to their handlers, and check which callers may use them.

`/healthz` and `/readyz` are open to all callers. `/metrics` needs the key, unless only this machine can reach
the listener. `/api` needs the key. `/status` is a page for people, with numbers only for callers that may
read the metrics. `/` is the same page.

In development mode `/` is a page to try the gateway, and nothing needs a key, except `/api` if a key is set.

Where no key is needed, the Host header must be an address or localhost. Otherwise a page of a foreign name
that points to this machine (DNS rebinding) could read the responses.
"""

import time
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from wsgate.admin import AdminOptions
from wsgate.admin.api import Api, ApiKey, is_local_host
from wsgate.admin.health import HealthAnswer, judge_liveness, judge_readiness, status_page
from wsgate.admin.keys import KeySetCollector, KeySetFetcher
from wsgate.admin.metrics import expose, make_registry
from wsgate.statistics import StatisticsBlock

__all__ = ["RESPONSE_HEADERS", "make_app"]

RESPONSE_HEADERS: Final = (
    ("Content-Security-Policy", "default-src 'self'; connect-src *"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)
"""Headers of every response. Pages load nothing from other servers; the try page connects to another port."""

FOREIGN_HOST: Final = (
    "Forbidden: this page is for this machine, and the request names another host. "
    "Use http://127.0.0.1:<port>/ or http://localhost:<port>/, or send the API key (admin.api_key).\n"
)

Endpoint = Callable[[Request], Awaitable[Response]]

_FILES: Final = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


def now_ms() -> int:
    """Read the clock that the statistics block uses: monotonic milliseconds."""
    return time.monotonic_ns() // 1_000_000


def make_app(
    options: AdminOptions, block: StatisticsBlock, api: Api, fetcher: KeySetFetcher | None = None
) -> Starlette:
    """Make the application of the admin port with all its routes.

    Args:
        options: The options of the admin process.
        block: The statistics of the node.
        api: The application for `/api/<method>`.
        fetcher: The fetcher of the issuer's keys, whose counters are metrics; None: there is none.
    """
    is_open = options.is_dev or options.is_loopback
    status = _guarded(options, _status(options, block, is_open=is_open))
    routes = [
        Route("/healthz", _judged(lambda: judge_liveness(block, now_ms()))),
        Route("/readyz", _judged(lambda: judge_readiness(block, now_ms()))),
        Route("/metrics", _guarded(options, _metrics(options, block, fetcher, is_open=is_open))),
        Route("/api/{method}", api),
        Route("/status", status),
        Route("/page.css", _file("page.css")),
        Route("/favicon.ico", _nothing),
    ]
    if options.is_dev:
        routes += [
            Route("/", _guarded(options, _file("index.html"))),
            Route("/page.js", _file("page.js")),
            Route("/page.json", _guarded(options, _page_settings(options))),
        ]
    else:
        routes.append(Route("/", status))
    app = Starlette(routes=routes)
    # A redirect would repeat the Host header of the request, which is not trusted.
    app.router.redirect_slashes = False
    return app


def _guarded(options: AdminOptions, endpoint: Endpoint) -> Endpoint:
    """Wrap an endpoint that needs no key: refuse a request to a foreign host, unless it has the key."""
    key = ApiKey(options.api_key)

    async def answer(request: Request) -> Response:
        is_local = is_local_host(request.headers, only_loopback=options.is_loopback)
        if not is_local and not key.is_shown(request.headers):
            return Response(FOREIGN_HOST, 403, media_type="text/plain")
        return await endpoint(request)

    return answer if options.is_dev or options.is_loopback else endpoint


def _judged(judge: Callable[[], HealthAnswer]) -> Endpoint:
    """Make an endpoint that responds with the status and the JSON body of a health check."""

    async def answer(request: Request) -> Response:
        status, body = judge()
        return JSONResponse(body, status)

    return answer


def _metrics(
    options: AdminOptions, block: StatisticsBlock, fetcher: KeySetFetcher | None, *, is_open: bool
) -> Endpoint:
    """Make the endpoint of `/metrics`."""
    key = ApiKey(options.api_key)
    registry = make_registry(block, options.node, now_ms)
    if fetcher is not None:
        registry.register(KeySetCollector(fetcher))

    async def answer(request: Request) -> Response:
        if not is_open and not key.is_shown(request.headers):
            return Response("unauthorized\n", 401, {"WWW-Authenticate": "Bearer"}, "text/plain")
        text, content_type = expose(registry, request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": content_type})

    return answer


def _file(name: str) -> Endpoint:
    """Make an endpoint that responds with a file of the page, read once."""
    content = resources.files("wsgate.admin").joinpath("page", name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=_FILES[name])

    return answer


def _page_settings(options: AdminOptions) -> Endpoint:
    """Make the endpoint of `/page.json`, from which the try page reads its settings."""
    settings = {
        "port": options.client_port,
        "path": options.path,
        "publish_command": options.publish_command,
        "node": options.node,
        "bus": str(options.bus),
    }

    async def answer(request: Request) -> Response:
        return JSONResponse(settings)

    return answer


def _status(options: AdminOptions, block: StatisticsBlock, *, is_open: bool) -> Endpoint:
    """Make the endpoint of the status page."""
    key = ApiKey(options.api_key)

    async def answer(request: Request) -> Response:
        has_numbers = is_open or key.is_shown(request.headers)
        return HTMLResponse(status_page(options.node, block, now_ms(), has_numbers=has_numbers))

    return answer


async def _nothing(request: Request) -> Response:
    """Respond with 204 to the request for an icon, which browsers send although there is none."""
    return Response(status_code=204)
