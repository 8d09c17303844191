"""The command line: thin. Every command is one function; exit 2 for configuration, 1 for the rest."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsgate import __version__
from wsgate.config import Config, effective, ignored_variables, is_loopback, load, parse_duration_ms
from wsgate.errors import BackendError, SettingsError, WsgateError
from wsgate.node.runtime import RunningGateway, running_gateways, runtime_directory, url_host

__all__ = ["main"]

BUS_TIMEOUT_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0: done; 1: it failed; 2: the configuration or the command line is wrong.
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
    except BrokenPipeError:  # who read our output is gone, as `head` is after ten lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wsgate", description="A WebSocket gateway for very many connections."
    )
    parser.add_argument("--version", action="version", version=f"wsgate {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="run a gateway"))
    _add_check(commands.add_parser("check-config", help="print the settings in effect, secrets masked"))
    _add_token(commands.add_parser("token", help="make a token for a user"))
    _add_publish(commands.add_parser("publish", help="publish to a channel"))
    _add_listen(commands.add_parser("listen", help="print what is published to a channel"))
    _add_doctor(commands.add_parser("doctor", help="say what limits this machine, and how to change it"))
    return parser


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; also $WSGATE_CONFIG")


def _configuration(
    options: argparse.Namespace,
    flags: dict[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    named = options.config or environ.get("WSGATE_CONFIG")
    return load(Path(named) if named else None, environ, flags or {})


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
        help="for development: this machine alone, anonymous clients, open channels, no admin key, try page",
    )
    parser.set_defaults(run=_serve)


def _flags(options: argparse.Namespace) -> dict[str, Any]:
    """Only what was given."""
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
    # Only here: the other commands need none of it, and start faster without.
    from wsgate.log import Log, set_up_logging
    from wsgate.node.build import make_plan
    from wsgate.node.keeper import Keeper
    from wsgate.node.privacy import forbid_dumps, hide_variables

    forbid_dumps()  # before anything secret is read
    environ = dict(os.environ)  # settings are read from it again at SIGHUP
    hide_variables(os.environ)
    config = _configuration(options, _flags(options), environ)
    set_up_logging(level=config.log.level, is_json=config.log.format == "json")
    if ignored := ignored_variables(environ):
        Log("keeper").warning("variables_ignored", why=ignored)
    plan = make_plan(config, environ, lambda: _configuration(options, _flags(options), environ))
    if os.getuid() == 0:
        Log("keeper").warning("runs_as_root", advice="set server.user to an ordinary user")
    head = f"wsgate {__version__}, {len(plan.shards)} shard{'s' if len(plan.shards) > 1 else ''}"
    admin = _admin_url(config, plan.running)
    print(f"{head}, starting: socket {plan.running.url}, admin {admin}", flush=True)
    banner = f"\n{head}\n{_banner(config, plan.running)}\nready\n"
    return Keeper(plan, lambda: _say(banner)).run()


def _say(text: str) -> None:
    """Print in one write, so that whoever waits for the last line has the others."""
    with contextlib.suppress(OSError):  # nobody may be reading any more, and that is no reason to end
        sys.stdout.write(text)
        sys.stdout.flush()


def _admin_url(config: Config, running: RunningGateway) -> str:
    return f"http://{url_host(config.admin.host)}:{running.admin_port}/"


def _banner(config: Config, running: RunningGateway) -> str:
    """What a reader needs next, as rows of a name and a value: addresses, commands to paste, how to stop."""
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
    """The address that clients can reach, as it was bound, and who that is."""
    host = config.server.host
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if is_loopback(host):
        return f"{address} (this machine only)"
    where = f"{address} (every address of this machine)" if host in ("0.0.0.0", "::") else address  # noqa: S104
    risk = "; development mode: whoever reaches it may read and publish everything"
    return f"{where}{risk}" if config.server.dev else where


# --- check-config -------------------------------------------------------------------------------------


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_configuration(parser)
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from wsgate.node.options import key_sources

    config = _configuration(options)
    if ignored := ignored_variables(os.environ):
        print(f"wsgate: {ignored}", file=sys.stderr)
    key_sources(config)  # a key that does not fit its algorithm is a mistake too
    print(effective(config), end="")
    return 0


# --- doctor -------------------------------------------------------------------------------------------


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_configuration(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--connections", type=int, default=0, help="held at once (as many as fit)")
    parser.add_argument("--rate", type=int, default=1_000, help="new connections a second (1000)")
    parser.add_argument("--message-bytes", type=int, default=1_024, help="of one publication (1024)")
    parser.add_argument("--fanout", type=int, default=0, help="connections it goes to (all)")
    parser.add_argument("--shards", type=int, help="processes with sockets (one per usable core)")
    parser.add_argument("--stop-timeout", help="after which the service is killed (systemd is asked)")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from wsgate.doctor import Demand, as_json, as_text, examine, read_kernel, resources

    # As in development, where a configuration without a secret is none to complain of.
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
    if number < 0:
        raise SettingsError(f"{name}: {number} is less than nothing")
    return number


# --- token --------------------------------------------------------------------------------------------


def _add_token(parser: argparse.ArgumentParser) -> None:
    _add_configuration(parser)
    _add_port(parser)
    parser.add_argument("--user", required=True, help="who it is for: the claim sub")
    parser.add_argument("--ttl", default="1h", help="how long it holds (1h)")
    parser.add_argument(
        "--channel", action="append", default=[], help="subscribed on connect; may be repeated"
    )
    parser.add_argument(
        "--subscribe", action="append", default=[], metavar="PATTERN", help="may subscribe to"
    )
    parser.add_argument("--publish", action="append", default=[], metavar="PATTERN", help="may publish to")
    parser.add_argument(
        "--for-channel", metavar="CHANNEL", help="a channel token: opens this channel, no connection"
    )
    parser.set_defaults(run=_token)


def _token(options: argparse.Namespace) -> int:
    import jwt

    now_s = int(time.time())
    claims: dict[str, Any] = {"sub": options.user, "iat": now_s}
    try:
        claims["exp"] = now_s + parse_duration_ms(options.ttl) // 1000
    except SettingsError as error:
        raise SettingsError(f"--ttl: {error}") from None
    given = {
        "channels": options.channel,
        "subscribe": options.subscribe,
        "publish": options.publish,
        "channel": options.for_channel,
    }
    claims |= {claim: value for claim, value in given.items() if value}
    print(jwt.encode(claims, _signing_secret(options), algorithm="HS256"))
    return 0


def _signing_secret(options: argparse.Namespace) -> str:
    """The configured secret, else the one the running development gateway made."""
    # As in development, where a configuration without a secret is none to complain of.
    config = _configuration(options, {"server": {"dev": True}})
    if secret := config.auth.hmac_secret or _running(options).secret:
        return secret
    raise SettingsError(
        "auth.hmac_secret: the gateway has its own: give --config, or WSGATE_AUTH__HMAC_SECRET"
    )


# --- publish and listen -------------------------------------------------------------------------------


def _add_port(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, help="which gateway, when several run here")


def _running(options: argparse.Namespace) -> RunningGateway:
    found = running_gateways(runtime_directory(os.environ, is_only_read=True))
    if options.port is not None:
        found = [gateway for gateway in found if gateway.port == options.port]
    if not found:
        raise BackendError(
            "no gateway of yours runs here; start one with: wsgate serve --dev", temporary=True
        )
    if len(found) > 1:
        ports = ", ".join(str(gateway.port) for gateway in found)
        raise SettingsError(f"several gateways run here: choose one with --port ({ports})")
    return found[0]


def _add_publish(parser: argparse.ArgumentParser) -> None:
    _add_port(parser)
    parser.add_argument("--redis", metavar="URL", help="the bus, instead of the running gateway's")
    parser.add_argument("--prefix", default="wsgate", help="of names on that bus (wsgate)")
    parser.add_argument("channel", help="a channel, or @user for a user's inbox")
    parser.add_argument("data", help="JSON, or any text; - reads standard input")
    parser.set_defaults(run=_publish)


def _publish(options: argparse.Namespace) -> int:
    from wsgate.bus import Names, parse_address
    from wsgate.bus.once import publish_once

    url, prefix = options.redis, options.prefix
    if url is None:
        running = _running(options)
        url, prefix = running.bus_url, running.prefix
    data = sys.stdin.buffer.read() if options.data == "-" else options.data.encode()
    name = Names(prefix).channel(options.channel.encode())
    heard = publish_once(parse_address(url), name, data, BUS_TIMEOUT_S)
    print(f"heard by {heard} shard{'' if heard == 1 else 's'}")
    return 0


def _add_listen(parser: argparse.ArgumentParser) -> None:
    _add_port(parser)
    parser.add_argument("--url", help="ws://host:port/ws, instead of the running gateway's")
    parser.add_argument("--token", default=os.environ.get("WSGATE_TOKEN", ""), help="also $WSGATE_TOKEN")
    parser.add_argument("--count", type=int, default=0, help="stop after so many publications")
    parser.add_argument("channel", help="a channel, or @me for the token's own inbox")
    parser.set_defaults(run=_listen)


def _listen(options: argparse.Namespace) -> int:
    from wsgate.client import listen

    url = options.url
    if url is None:
        url = _running(options).url
    listen(
        url, options.channel, lambda line: print(line, flush=True), token=options.token, limit=options.count
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
