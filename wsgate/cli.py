"""The command line of `wsgate`: parse the arguments and run one command, each a function of this module."""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsgate import __version__
from wsgate.config import (
    Config,
    effective,
    format_duration,
    format_size,
    ignored_variables,
    is_loopback,
    load,
    parse_duration_ms,
    reloader,
)
from wsgate.errors import BackendError, SettingsError, WsgateError
from wsgate.node.runtime import RunningGateway, running_gateways, runtime_directory, url_host

__all__ = ["main"]

BUS_TIMEOUT_S = 5.0
OWN_INBOX = "@me"
SHOWN_LIMIT = 60
"""The most characters of a wrong argument that an error text shows."""
TTL_LIMIT_MS = 100 * 365 * 24 * 3_600_000
"""The longest life of a token: a hundred years."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments select.

    Args:
        arguments: The arguments without the program's name; None: those of this process.

    Returns:
        The exit code: 0: the command succeeded; 1: it failed; 2: the configuration or the command line is not
            valid;
        130: Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except SettingsError as error:
        print(f"wsgate: {error}", file=sys.stderr)
        return 2
    except WsgateError as error:
        print(f"wsgate: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does after ten lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    """Build the parser of the command line with all its commands."""
    parser = argparse.ArgumentParser(
        prog="wsgate", description="A WebSocket gateway for very many connections."
    )
    parser.add_argument("--version", action="version", version=f"wsgate {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="run a gateway"))
    _add_check(commands.add_parser("check-config", help="print the settings in effect, secrets masked"))
    _add_token(commands.add_parser("token", help="make a token for a user"))
    _add_publish(commands.add_parser("publish", help="publish to a channel"))
    _add_listen(commands.add_parser("listen", help="print the publications of a channel"))
    _add_doctor(commands.add_parser("doctor", help="examine this machine and its limits"))
    return parser


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; also $WSGATE_CONFIG")


def _configuration(
    options: argparse.Namespace,
    flags: dict[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Load the configuration from the file of the options, the environment and the flags."""
    return load(options.config, environ, flags or {})


# --- serve --------------------------------------------------------------------------------------------


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_configuration(parser)
    parser.add_argument("--host", help="address clients connect to (0.0.0.0, with --dev 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port clients connect to (8000)")
    parser.add_argument("--shards", type=int, help="processes with sockets (one per usable core)")
    parser.add_argument("--redis", metavar="URL", help="the bus; without it a private one is started")
    parser.add_argument("--admin-host", help="address of health, metrics, API and page (127.0.0.1)")
    parser.add_argument("--admin-port", type=int, help="port of health, metrics, API and page (9000)")
    parser.add_argument(
        "--dev",
        action="store_true",
        help="development mode: this machine only, anonymous clients, open channels, no admin key, try page",
    )
    parser.set_defaults(run=_serve)


def _flags(options: argparse.Namespace) -> dict[str, Any]:
    """Convert the flags that were given into nested settings."""
    rows = {
        ("server", "host"): options.host,
        ("server", "port"): options.port,
        ("server", "shards"): options.shards,
        ("server", "dev"): options.dev or None,
        ("bus", "url"): options.redis,
        ("admin", "host"): options.admin_host,
        ("admin", "port"): options.admin_port,
    }
    flags: dict[str, Any] = {}
    for (section, key), value in rows.items():
        if value is not None:
            flags.setdefault(section, {})[key] = value
    return flags


def _serve(options: argparse.Namespace) -> int:
    """Run a gateway until it is stopped."""
    # Imported here, because the other commands do not need these modules, and start faster without them.
    from wsgate.log import Log, set_up_logging
    from wsgate.node.build import make_plan
    from wsgate.node.keeper import Keeper
    from wsgate.node.privacy import forbid_dumps, hide_variables

    forbid_dumps()  # before anything secret is read
    environ = dict(os.environ)  # a reload reads the settings from this copy again
    hide_variables(os.environ)
    read_again = reloader(options.config, environ, _flags(options))
    config = _configuration(options, _flags(options), environ)
    set_up_logging(level=config.log.level, is_json=config.log.format == "json")
    if ignored := ignored_variables(environ):
        Log("keeper").warning("variables_ignored", why=ignored)
    plan = make_plan(config, environ, read_again)
    if os.getuid() == 0:
        Log("keeper").warning("runs_as_root", advice="set server.user to an ordinary user")
    head = f"wsgate {__version__}, {len(plan.shards)} shard{'s' if len(plan.shards) > 1 else ''}"
    admin = _admin_url(config, plan.running)
    print(f"{head}, starting: socket {plan.running.url}, admin {admin}", flush=True)
    banner = f"{head}\n{_banner(config, plan.running)}\nready\n"
    return Keeper(plan, lambda: _say(banner)).run()


def _say(text: str) -> None:
    """Print a text in one write, so that a program that waits for the last line gets all lines with it."""
    sys.stdout.write(text)  # this does not wait for the reader, because logging is set up


def _admin_url(config: Config, running: RunningGateway) -> str:
    return f"http://{url_host(config.admin.host)}:{running.admin_port}/"


def _banner(config: Config, running: RunningGateway) -> str:
    """Format the rows of the banner, each a name and a value: addresses, commands to try, how to stop."""
    from wsgate.bus import parse_address
    from wsgate.node.options import command_line, publish_command

    what = "private, on " if not config.bus.url else ""
    rows = {
        "listens": _listen_address(config, running.port),
        "socket": running.url,
        "page" if config.server.dev else "admin": _admin_url(config, running),
        "bus": f"{what}{parse_address(running.bus_url)}",
        "publish": publish_command(running),
    }
    if config.server.dev:
        rows["listen"] = command_line(running, "listen", "news")
        rows["token"] = command_line(running, "token", "--user 42")
    rows["stop"] = "press Ctrl-C" if sys.stdout.isatty() else f"press Ctrl-C, or: kill {running.pid}"
    return "\n".join(f"  {name:8} {value}" for name, value in rows.items())


def _listen_address(config: Config, port: int) -> str:
    """Return the address that was bound, and which machines can reach it."""
    host = config.server.host
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if is_loopback(host):
        return f"{address} (this machine only)"
    where = f"{address} (every address of this machine)" if host in ("0.0.0.0", "::") else address  # noqa: S104 - no bind
    risk = "; development mode: every client that reaches it may read and publish everything"
    return f"{where}{risk}" if config.server.dev else where


# --- check-config -------------------------------------------------------------------------------------


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_configuration(parser)
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    """Check the configuration, and print all settings with secrets masked."""
    from wsgate.node.options import key_sources

    config = _configuration(options)
    if ignored := ignored_variables(os.environ):
        print(f"wsgate: {ignored}", file=sys.stderr)
    key_sources(config)  # raises SettingsError for a key that does not fit its algorithm
    print(effective(config), end="")
    return 0


# --- doctor -------------------------------------------------------------------------------------------


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_configuration(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--connections", type=int, default=0, help="open connections (as many as possible)")
    parser.add_argument("--rate", type=int, default=1_000, help="new connections a second (1000)")
    parser.add_argument("--message-bytes", type=int, default=1_024, help="size of one publication (1024)")
    parser.add_argument("--fanout", type=int, default=0, help="connections that receive a publication (all)")
    parser.add_argument("--shards", type=int, help="processes with sockets (one per usable core)")
    parser.add_argument("--stop-timeout", help="time until a stopping service is killed (from systemd)")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    """Examine this machine and print the diagnosis; exit code 1 if the demand cannot be served."""
    from wsgate.doctor import Demand, as_json, as_text, examine, read_kernel, resources

    # In development mode a configuration without a secret is valid.
    flags: dict[str, Any] = {"server": {"dev": True}}
    if options.shards is not None:
        flags["server"]["shards"] = options.shards
    config = _configuration(options, flags)
    stop_timeout_s = parse_duration_ms(options.stop_timeout) / 1000 if options.stop_timeout else None
    demand = Demand(
        connections=_natural(options.connections, "--connections") or config.admission.max_connections,
        rate_per_s=_natural(options.rate, "--rate"),
        message_bytes=_natural(options.message_bytes, "--message-bytes"),
        fanout=_natural(options.fanout, "--fanout"),
    )
    diagnosis = examine(read_kernel(), resources(config, stop_timeout_s), demand)
    print((as_json if options.json else as_text)(diagnosis), end="")
    return int(diagnosis.is_blocked)


def _natural(number: int, name: str) -> int:
    """Return a number that is 0 or more; else raise SettingsError with the name of its flag."""
    if number < 0:
        raise SettingsError(f"{name}: {number} must be 0 or more")
    return number


# --- token --------------------------------------------------------------------------------------------


def _add_token(parser: argparse.ArgumentParser) -> None:
    _add_configuration(parser)
    _add_port(parser)
    parser.add_argument("--user", required=True, help="user of the token: the claim sub")
    parser.add_argument("--ttl", default="1h", help="time until the token expires (1h)")
    parser.add_argument(
        "--channel", action="append", default=[], help="channel to subscribe to on connect; may be repeated"
    )
    parser.add_argument(
        "--subscribe",
        action="append",
        default=[],
        metavar="PATTERN",
        help="the user may subscribe to",
    )
    parser.add_argument(
        "--publish", action="append", default=[], metavar="PATTERN", help="the user may publish to"
    )
    parser.add_argument(
        "--for-channel", metavar="CHANNEL", help="make a channel token: for this channel, not for connections"
    )
    parser.set_defaults(run=_token)


def _token(options: argparse.Namespace) -> int:
    """Make a token with the given claims, signed with the configured shared secret, and print it."""
    import jwt

    now_s = int(time.time())
    claims: dict[str, Any] = {"sub": options.user, "iat": now_s}
    _check_claims(options)
    try:
        ttl_ms = parse_duration_ms(options.ttl)
    except SettingsError as error:
        raise SettingsError(f"--ttl: {error}") from None
    if not 1_000 <= ttl_ms <= TTL_LIMIT_MS:
        raise SettingsError(f"--ttl: must be 1s to {format_duration(TTL_LIMIT_MS)}, got {options.ttl}")
    claims["exp"] = now_s + ttl_ms // 1000
    given = {
        "channels": options.channel,
        "subscribe": options.subscribe,
        "publish": options.publish,
        "channel": options.for_channel,
    }
    # In development mode a configuration without a secret is valid.
    config = _configuration(options, {"server": {"dev": True}})
    given |= {"aud": config.auth.audience, "iss": config.auth.issuer}  # the gateway requires these if set
    claims |= {claim: value for claim, value in given.items() if value}
    key = _signing_key(options, config)
    headers = None if key.kid is None else {"kid": key.kid}
    print(jwt.encode(claims, key.secret, algorithm=key.algorithm, headers=headers))
    return 0


def _check_claims(options: argparse.Namespace) -> None:
    """Refuse names and patterns that the gateway would refuse in a token."""
    from wsgate.auth.permissions import is_channel_name, is_pattern
    from wsgate.bus.receivers import is_user

    if not is_user(options.user):
        wanted = "1 to 128 bytes without control characters"
        raise SettingsError(f"--user: {_quoted(options.user)} is not a valid user: {wanted}")
    if options.for_channel is not None and not is_channel_name(options.for_channel):
        raise SettingsError(f"--for-channel: {_quoted(options.for_channel)} is not a valid channel name")
    for name in options.channel:
        if not is_channel_name(name) or "*" in name:
            raise SettingsError(f"--channel: {_quoted(name)} is not a valid channel name")
    for flag, patterns in (("--subscribe", options.subscribe), ("--publish", options.publish)):
        for pattern in patterns:
            if not is_pattern(pattern):
                wanted = 'a channel, or a prefix with a "*" at its end'
                raise SettingsError(f"{flag}: {_quoted(pattern)} is not a valid pattern: {wanted}")


class _SigningKey(NamedTuple):
    """A shared secret that signs tokens, with its algorithm and its key id; None: its tokens name no key."""

    secret: str
    algorithm: str = "HS256"
    kid: str | None = None


def _signing_key(options: argparse.Namespace, config: Config) -> _SigningKey:
    """Return the configured secret, else the secret that the running gateway made in development mode.

    The configured secret is `auth.hmac_secret`, else the first shared secret of `auth.keys`.
    """
    auth = config.auth
    if auth.hmac_secret:
        return _SigningKey(auth.hmac_secret)
    for kid, key in auth.keys.items():
        if key.secret:
            return _SigningKey(key.secret, key.algorithm, kid)
    has_public_keys = bool(auth.keys or auth.jwks_url)
    try:
        secret = _running(options).secret
    except BackendError:
        if not has_public_keys:
            raise
        secret = ""
    if secret:
        return _SigningKey(secret)
    if has_public_keys:
        raise SettingsError(
            "auth: the configuration has only public keys, which verify tokens and sign none:"
            " let the owner of a private key make the token"
        )
    raise SettingsError(
        "auth: the running gateway has configured keys, which are not known here:"
        " pass its --config, or WSGATE_AUTH__HMAC_SECRET"
    )


# --- publish and listen -------------------------------------------------------------------------------


def _add_port(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, help="port of the gateway, if several run here")


def _running(options: argparse.Namespace) -> RunningGateway:
    """Find the one running gateway of this user, or the one with `--port`."""
    found = running_gateways(runtime_directory(os.environ, is_only_read=True))
    if options.port is not None:
        found = [gateway for gateway in found if gateway.port == options.port]
    if not found:
        raise BackendError(
            "no gateway of this user runs here; start one with: wsgate serve --dev", temporary=True
        )
    if len(found) > 1:
        ports = ", ".join(str(gateway.port) for gateway in found)
        raise SettingsError(f"several gateways run here: choose one with --port ({ports})")
    return found[0]


def _add_publish(parser: argparse.ArgumentParser) -> None:
    _add_port(parser)
    parser.add_argument("--redis", metavar="URL", help="the bus, instead of the running gateway's")
    parser.add_argument("--prefix", default="wsgate", help="prefix of names on that bus (wsgate)")
    parser.add_argument("channel", help="a channel, or @user for a user's inbox")
    parser.add_argument("data", help="JSON, or any text; - reads standard input")
    parser.set_defaults(run=_publish)


def _publish(options: argparse.Namespace) -> int:
    """Publish data to a channel on the bus, and print how many shards received it."""
    from wsgate.bus import Names, parse_address
    from wsgate.bus.once import publish_once

    channel: str = options.channel
    _check_receiver(channel)
    url, prefix, limits = options.redis, options.prefix, {}
    if url is None:
        running = _running(options)
        url, prefix, limits = running.bus_url, running.prefix, running.publish_limits
    else:
        # Check both like the settings bus.url and bus.prefix.
        load(None, {}, {"server": {"dev": True}, "bus": {"url": url, "prefix": prefix}})
    # fsencode returns the bytes of the argument, also bytes that are no valid text.
    data = sys.stdin.buffer.read() if options.data == "-" else os.fsencode(options.data)
    _check_publication(channel, len(data), limits)
    heard = publish_once(parse_address(url), Names(prefix).channel(channel.encode()), data, BUS_TIMEOUT_S)
    nobody = f": no client is subscribed to {channel}" if heard == 0 else ""
    print(f"received by {heard} shard{'' if heard == 1 else 's'}{nobody}")
    return 0


def _check_receiver(channel: str) -> None:
    """Refuse a channel name that no client can subscribe to, as the API does."""
    from wsgate.bus.receivers import is_channel

    if channel == OWN_INBOX:
        raise SettingsError(f"{OWN_INBOX} is the name of a client's own inbox: publish to @<user>")
    if not is_channel(channel):
        raise SettingsError(
            f"{_quoted(channel)} is not a channel: a name has 1 to 200 bytes of UTF-8, without spaces, "
            "control characters and braces, and the inbox of a user is @ and 1 to 128 bytes"
        )


def _check_publication(channel: str, size_bytes: int, limits: Mapping[str, int]) -> None:
    """Refuse a publication that the gateway would drop; nothing if its limits are not known here."""
    from wsgate.bus.receivers import publish_limit_bytes

    if not limits:
        return
    limit_bytes = publish_limit_bytes(limits, channel)
    if limit_bytes is None:
        raise SettingsError(f"{_quoted(channel)}: the gateway has no such namespace ([channels.<namespace>])")
    if size_bytes > limit_bytes:
        raise SettingsError(
            f"too large: the data has {size_bytes} bytes, and {channel} takes {format_size(limit_bytes)} "
            "(max_publish of its namespace)"
        )


def _quoted(text: str) -> str:
    """Format an argument for an error text: shortened, quoted and printable."""
    return repr(text if len(text) <= SHOWN_LIMIT else text[:SHOWN_LIMIT] + "...")


def _add_listen(parser: argparse.ArgumentParser) -> None:
    _add_port(parser)
    parser.add_argument("--url", help="ws://host:port/ws, instead of the running gateway's")
    parser.add_argument("--token", default=os.environ.get("WSGATE_TOKEN", ""), help="also $WSGATE_TOKEN")
    parser.add_argument("--count", type=int, default=0, help="stop after this number of publications")
    parser.add_argument("channel", help="a channel, or @me for the token's own inbox")
    parser.set_defaults(run=_listen)


def _listen(options: argparse.Namespace) -> int:
    """Subscribe to a channel as a client, and print each message as a line of JSON."""
    from wsgate.client import listen

    _natural(options.count, "--count")
    url = options.url
    if url is None:
        url = _running(options).url
    listen(
        url, options.channel, lambda line: print(line, flush=True), token=options.token, limit=options.count
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
