"""Parses the URL of the bus, and masks its passwords for display. Pure.

    redis://[user:password@]host[:6379]            one server; rediss:// with TLS
    unix://[user:password@]/path                   one server on this machine
    redis+sentinel://h1[:26379],h2,.../master      the primary found through sentinels; rediss+sentinel://
    redis+cluster://h1[:6379],h2,...               a cluster, found through any node; rediss+cluster://

The options after `?` are `username`, `password`, `sentinel_username`, `sentinel_password`, `db` (only 0,
because pub/sub has no databases), and for TLS `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile`, which are
paths of PEM files with the names of redis-py. An ambiguous URL is refused, because the end of its password is
not known.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote

from wsgate.errors import SettingsError

__all__ = ["BusAddress", "BusTls", "mask_password", "parse_address", "with_password"]

CLUSTER: Final = "cluster"
SENTINEL: Final = "sentinel"
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_MASK: Final = "***"
_SCHEMES: Final = {
    "redis": ("", False),
    "rediss": ("", True),
    "unix": ("", False),
    "redis+sentinel": (SENTINEL, False),
    "rediss+sentinel": (SENTINEL, True),
    "redis+cluster": (CLUSTER, False),
    "rediss+cluster": (CLUSTER, True),
}
_URL: Final = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^@/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_PRINTABLE: Final = re.compile(r"[!-~]*")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:,]+)(?::([0-9]{1,5}))?")
_MASTER: Final = re.compile(r"/[A-Za-z0-9._-]+")
_TLS_OPTIONS: Final = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_SENTINEL_OPTIONS: Final = {"sentinel_username", "sentinel_password"}
_SECRET_OPTIONS: Final = {"password", "sentinel_password"}


@dataclass(frozen=True, slots=True)
class BusTls:
    """The paths of PEM files for TLS to the bus; empty: the system's authorities, no client certificate."""

    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


@dataclass(frozen=True, slots=True)
class BusAddress:
    """The address of one bus server (a Unix socket if `path` is set, else TCP), or of hosts that know it.

    Attributes:
        kind: "" for one server; "sentinel" or "cluster" if the server is found through `hosts`.
        hosts: The sentinels or cluster nodes, as host and port, in any order.
        master: The name of the primary at the sentinels.
    """

    host: str = "localhost"
    port: int = _PORT
    path: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    tls: BusTls | None = None
    kind: str = ""
    hosts: tuple[tuple[str, int], ...] = ()
    master: str = ""
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)

    @property
    def is_cluster(self) -> bool:
        """Return whether the bus is a cluster, which spreads sharded channels over its servers."""
        return self.kind == CLUSTER

    def redis_options(self, *, of_sentinels: bool = False) -> dict[str, Any]:
        """Return credentials and TLS as keyword arguments of redis-py, for the servers or the sentinels."""
        user, password = self.username, self.password
        if of_sentinels:
            user, password = self.sentinel_username, self.sentinel_password
        options: dict[str, Any] = {"username": user or None, "password": password or None}
        if self.tls is not None:
            options |= {
                "ssl": True,
                "ssl_ca_certs": self.tls.ca_file or None,
                "ssl_certfile": self.tls.certificate_file or None,
                "ssl_keyfile": self.tls.key_file or None,
            }
        return options

    def server(self, host: str, port: int) -> "BusAddress":
        """Return the address of one server found through this address, with the same credentials."""
        return replace(self, kind="", hosts=(), master="", host=host, port=port, path="")

    def __str__(self) -> str:
        """Return the address as a URL for people, without user and password."""
        if self.path:
            return f"unix://{self.path}"
        scheme = ("rediss" if self.tls else "redis") + (f"+{self.kind}" if self.kind else "")
        hosts = self.hosts or ((self.host, self.port),)
        shown = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts)
        return f"{scheme}://{shown}" + (f"/{self.master}" if self.master else "")


def parse_address(url: str) -> BusAddress:
    """Parse a bus URL into an address.

    Raises:
        SettingsError: The URL is not valid; the message starts with `bus.url` and never contains the URL.
    """
    found = _URL.fullmatch(url) if _PRINTABLE.fullmatch(url) else None
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in _SCHEMES:
        raise SettingsError(f"bus.url: must be one of {', '.join(f'{each}://' for each in _SCHEMES)}")
    # At a raw "@" behind the authority the password could really end; at %40 it cannot.
    is_lone_path = scheme == "unix" and "@" not in url.partition("://")[2].partition("/")[0]
    if found is None or ("@" in (found["path"] or "") + (found["query"] or "") and not is_lone_path):
        raise SettingsError(
            "bus.url: this is not a URL such as redis://user:password@host:6379 or unix:///path"
        )
    kind, is_tls = _SCHEMES[scheme]
    path = unquote(found["path"] or "")
    options = _options(found["query"] or "", kind, is_tls=is_tls)
    user, _, password = (found["user"] or "").partition(":")
    address = BusAddress(
        username=unquote(user) or options.get("username", ""),
        password=unquote(password) or options.get("password", ""),
        tls=BusTls(*(options.get(name, "") for name in sorted(_TLS_OPTIONS))) if is_tls else None,
        kind=kind,
        sentinel_username=options.get("sentinel_username", ""),
        sentinel_password=options.get("sentinel_password", ""),
    )
    if scheme == "unix":
        if len(path) < 2 or found["hosts"]:
            raise SettingsError("bus.url: this is not a URL such as unix:///path")
        return replace(address, path=path)
    if kind != SENTINEL and path.strip("/") not in ("", "0"):
        raise SettingsError("bus.url: only database 0 is allowed, because pub/sub has no databases")
    hosts = _hosts(found["hosts"], _SENTINEL_PORT if kind == SENTINEL else _PORT)
    if not kind:
        if len(hosts) > 1:
            raise SettingsError("bus.url: several hosts need redis+sentinel:// or redis+cluster://")
        return replace(address, host=hosts[0][0], port=hosts[0][1])
    if kind == SENTINEL and not _MASTER.fullmatch(path):
        raise SettingsError("bus.url: sentinels need the primary's name: redis+sentinel://h1,h2/master")
    return replace(address, hosts=hosts, master=path.strip("/") if kind == SENTINEL else "")


def _options(query: str, kind: str, *, is_tls: bool) -> dict[str, str]:
    """Parse the options of a URL; SettingsError for an option that this kind of address does not have."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    taken = {"username", "password", "db"} | (_TLS_OPTIONS if is_tls else set())
    taken |= _SENTINEL_OPTIONS if kind == SENTINEL else set()
    if options.pop("db", "") not in ("", "0") or not options.keys() <= taken:
        raise SettingsError(f"bus.url: only database 0, and no options but {', '.join(sorted(taken))}")
    return options


def _hosts(text: str, port: int) -> tuple[tuple[str, int], ...]:
    """Parse a list of hosts with optional ports, without duplicates; SettingsError if one is not valid."""
    found = [_HOST.fullmatch(each) for each in text.split(",")]
    hosts = [(each[1].strip("[]"), int(each[2] or port)) for each in found if each]
    if len(hosts) < len(found) or not all(0 < each <= 65_535 for _, each in hosts):
        raise SettingsError("bus.url: this is not a URL: hosts are host[:port], with commas between them")
    return tuple(dict.fromkeys(hosts))


def with_password(url: str, password: str) -> str:
    """Return a bus URL with `password` in place of its own; unchanged for an empty password."""
    found = _URL.fullmatch(url)
    if not password or found is None:
        return url
    user = (found["user"] or "").partition(":")[0]
    query = "&".join(
        each for each in (found["query"] or "").split("&") if each.partition("=")[0] != "password"
    )
    tail = (found["path"] or "") + (f"?{query}" if query else "")
    return f"{found['scheme']}://{user}:{quote(password, safe='')}@{found['hosts']}{tail}"


def mask_password(url: str) -> str:
    """Return the URL with masked passwords; a URL that is not valid is masked completely."""
    try:
        parse_address(url)
    except SettingsError:
        return _MASK if url else ""
    found = _URL.fullmatch(url)
    assert found is not None
    user, colon, _ = (found["user"] or "").partition(":")
    authority = user + (colon and f":{_MASK}") + ("@" if found["user"] is not None else "") + found["hosts"]
    query = found["query"] and "?" + "&".join(map(_masked_option, found["query"].split("&")))
    return f"{found['scheme']}://{authority}{found['path'] or ''}{query or ''}"


def _masked_option(option: str) -> str:
    """Return one option of a URL, with its value masked if it is a password."""
    name = option.partition("=")[0]
    return f"{name}={_MASK}" if unquote(name).lower() in _SECRET_OPTIONS else option
