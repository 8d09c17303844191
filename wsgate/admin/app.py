"""The admin's URLs: which path is answered by what, and who may ask.

`/healthz` and `/readyz` are for anybody, `/metrics` for this machine or whoever has the key, `/api` for
whoever has the key. `/status` is for people, with numbers for whoever may read the metrics; `/` is the same
page, in development one to try the gateway with, and no key is asked for.

Where no key is asked for, the Host header must name this machine: a page of a foreign name that was rebound
to it (DNS rebinding) could read the answers otherwise.
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
"""On every answer. Nothing is loaded from elsewhere; the try page connects to another port."""

FOREIGN_HOST: Final = (
    "Forbidden: this page is for this machine, and the request names another host. "
    "Use http://127.0.0.1:<port>/ or http://localhost:<port>/, or send the API key (admin.api_key).\n"
)

Endpoint = Callable[[Request], Awaitable[Response]]

_FILES: Final = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


def now_ms() -> int:
    """The clock of the statistics block: monotonic milliseconds."""
    return time.monotonic_ns() // 1_000_000


def make_app(
    options: AdminOptions, block: StatisticsBlock, api: Api, fetcher: KeySetFetcher | None = None
) -> Starlette:
    """The whole application.

    Args:
        options: Who may ask for what, and what the page is told.
        block: The node's numbers.
        api: Behind `/api/<method>`.
        fetcher: Of the issuer's keys, for the metrics; None: there is none.
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
    # A redirect would name whatever host the request named.
    app.router.redirect_slashes = False
    return app


def _guarded(options: AdminOptions, endpoint: Endpoint) -> Endpoint:
    """The endpoint; where it asks for no key, only for requests to this machine or with the key."""
    key = ApiKey(options.api_key)

    async def answer(request: Request) -> Response:
        is_local = is_local_host(request.headers, only_loopback=options.is_loopback)
        if not is_local and not key.is_shown(request.headers):
            return Response(FOREIGN_HOST, 403, media_type="text/plain")
        return await endpoint(request)

    return answer if options.is_dev or options.is_loopback else endpoint


def _judged(judge: Callable[[], HealthAnswer]) -> Endpoint:
    async def answer(request: Request) -> Response:
        status, body = judge()
        return JSONResponse(body, status)

    return answer


def _metrics(
    options: AdminOptions, block: StatisticsBlock, fetcher: KeySetFetcher | None, *, is_open: bool
) -> Endpoint:
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
    content = resources.files("wsgate.admin").joinpath("page", name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=_FILES[name])

    return answer


def _page_settings(options: AdminOptions) -> Endpoint:
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
    key = ApiKey(options.api_key)

    async def answer(request: Request) -> Response:
        has_numbers = is_open or key.is_shown(request.headers)
        return HTMLResponse(status_page(options.node, block, now_ms(), has_numbers=has_numbers))

    return answer


async def _nothing(request: Request) -> Response:
    """There is no icon; browsers ask for it all the same."""
    return Response(status_code=204)
