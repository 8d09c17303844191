"""Check the configuration: all settings, their sources, and the error text of each mistake."""

import ast
import contextlib
import hashlib
import os
import re
import secrets
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

import wsgate.config
from wsgate.auth import OriginPolicy
from wsgate.config import (
    Auth,
    Bus,
    Config,
    Key,
    effective,
    format_duration,
    format_size,
    load,
    parse_duration_ms,
    parse_size_bytes,
    setting_files,
    settings,
    sources,
    units,
)
from wsgate.errors import SettingsError

SECRET: Final = "correct horse battery staple, twice over"
PEM: Final = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"
ALLOWED: Final = {"WSGATE_AUTH__ALLOW_ANONYMOUS": "true"}

DEFAULTS: Final[dict[str, Any]] = {
    "server": {
        "host": "0.0.0.0",
        "port": 8000,
        "path": "/ws",
        "node": "",
        "user": "",
        "shards": 0,
        "allowed_origins": [],
        "trusted_proxies": [],
        "proxy_protocol": False,
        "compression": False,
        "compression_threshold": "512B",
        "drain_timeout": "30s",
        "dev": False,
    },
    "auth": {
        "hmac_secret": "",
        "allow_anonymous": False,
        "allow_query_token": False,
        "audience": "",
        "issuer": "",
        "leeway": "0s",
        "require_exp": True,
        "token_max_life": "0s",
        "token_cache": 65536,
        "jwks_url": "",
    },
    "heartbeat": {"ping_interval": "25s", "pong_timeout": "10s"},
    "limits": {
        "max_message": "64KiB",
        "max_fragments": 1024,
        "max_subscriptions": 128,
        "max_channel_name": "200B",
        "message_rate": 0,
        "byte_rate": "0B",
        "publish_rate": 1000,
        "publish_burst": 2000,
        "publish_byte_rate": "4MiB",
        "node_publish_byte_rate": "64MiB",
        "outbox_bytes": "1MiB",
        "outbox_frames": 256,
        "outbox_age": "10s",
        "head_timeout": "10s",
        "auth_timeout": "5s",
        "write_timeout": "10s",
        "idle_timeout": "0s",
        "message_timeout": "30s",
    },
    "admission": {
        "max_connections": 0,
        "reserve_descriptors": 64,
        "handshake_rate": 0,
        "handshakes_in_progress": 1024,
        "per_address_connections": 0,
        "per_address_rate": 0,
        "per_user_connections": 0,
        "per_user_policy": "replace_oldest",
        "per_user_rate": 0,
        "partial_bytes": "256MiB",
        "memory_budget": "0B",
    },
    "bus": {
        "url": "",
        "password": "",
        "prefix": "wsgate",
        "connect_timeout": "5s",
        "command_timeout": "5s",
        "gap_spread": "0s",
        "backlog": "32MiB",
    },
    "events": {"enabled": [], "partitions": 1, "maxlen": 100000, "pubsub": False},
    "admin": {"host": "127.0.0.1", "port": 9000, "api_key": ""},
    "health": {"canary_interval": "5s"},
    "log": {"format": "text", "level": "info"},
    "channels": {
        "default": {
            "subscribe": "token",
            "publish": "nobody",
            "slow_consumer": "close",
            "max_publish": "64KiB",
        }
    },
    "inbox": {"slow_consumer": "close"},
}

# Every key once, away from its default.
EVERYTHING: Final = f"""
[server]
host = "::"
port = 0
path = "/socket"
node = "gate-1"
user = "wsgate"
shards = 2
allowed_origins = ["https://a.example", "http://[::1]:8080", "null"]
trusted_proxies = ["192.0.2.1", "fd00::/8"]
proxy_protocol = true
compression = true
compression_threshold = "1KiB"
drain_timeout = "1h"
dev = true
[auth]
hmac_secret = "{SECRET}"
allow_anonymous = true
allow_query_token = true
audience = "aud"
issuer = "iss"
leeway = "2s"
require_exp = false
token_max_life = "1h"
token_cache = 0
jwks_url = "https://issuer.example/keys"
[auth.keys.main]
algorithm = "EdDSA"
public_key = '''
{PEM}'''
[auth.keys."2026/11"]
algorithm = "HS384"
secret = "{SECRET * 2}"
[heartbeat]
ping_interval = "0"
pong_timeout = "0"
[limits]
max_message = 512
max_fragments = 1
max_subscriptions = 0
max_channel_name = 1
message_rate = 1
byte_rate = "1KiB"
publish_rate = 1
publish_burst = 1
publish_byte_rate = "2KiB"
node_publish_byte_rate = "3KiB"
outbox_bytes = "2MiB"
outbox_frames = 2
outbox_age = "1ms"
head_timeout = "2ms"
auth_timeout = "3ms"
write_timeout = "4ms"
idle_timeout = "24h"
message_timeout = "6m"
[admission]
max_connections = 1
reserve_descriptors = 2
handshake_rate = 3
handshakes_in_progress = 4
per_address_connections = 1
per_address_rate = 2
per_user_connections = 3
per_user_policy = "refuse"
per_user_rate = 4
partial_bytes = "1MiB"
memory_budget = "1GiB"
[bus]
url = "redis://user:{SECRET.split()[0]}@redis.example:6380/0"
password = "{SECRET}"
prefix = "a.b-c_d"
connect_timeout = "1s"
command_timeout = "2s"
gap_spread = "1m"
backlog = "33MiB"
[events]
enabled = ["connected", "message"]
partitions = 4
maxlen = 5
pubsub = true
[admin]
host = "0.0.0.0"
port = 65535
api_key = "{SECRET}"
[health]
canary_interval = "1s"
[log]
format = "json"
level = "debug"
[channels.default]
subscribe = "nobody"
publish = "authenticated"
slow_consumer = "drop_oldest"
max_publish = "1GiB"
[channels.Chat-1]
subscribe = "anyone"
publish = "token"
slow_consumer = "latest_only"
max_publish = 1
[inbox]
slow_consumer = "latest_only"
"""


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "wsgate.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def secret_file(tmp_path: Path) -> Callable[..., str]:
    def write(content: str | bytes, *, mode: int = 0o600) -> str:
        path = tmp_path / "secret"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return str(path)

    return write


def mistakes(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> list[str]:
    """Return the lines of the error of `load`, without their common beginning."""
    with pytest.raises(SettingsError) as caught:
        load(path, environ or {}, flags or {})
    lines = str(caught.value).split("\n")
    assert all(line.startswith("config: ") for line in lines)
    return [line.removeprefix("config: ") for line in lines]


def anonymous(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Config:
    return load(None, {**ALLOWED, **(environ or {})}, flags or {})


# Units


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [("250ms", 250), ("25s", 25_000), ("5m", 300_000), ("1h", 3_600_000), ("0", 0), ("00", 0), ("0h", 0)],
)
def test_valid_duration_is_parsed_into_milliseconds(text: str, duration_ms: int) -> None:
    assert parse_duration_ms(text) == duration_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "25",
        "25 s",
        " 25s",
        "25s\n",
        "1.5s",
        "-1s",
        "+1s",
        "1d",
        "1h30m",
        "s",
        "25S",
        "1e3s",
        "٢s",
        "9" * 5000,
    ],
)
def test_invalid_duration_raises_settings_error(text: str) -> None:
    with pytest.raises(SettingsError, match=r'is not a duration such as "250ms", "25s", "5m", "1h"$'):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("512B", 512), ("64KiB", 65_536), ("1MiB", 1 << 20), ("2GiB", 2 << 30), ("0", 0), ("1000", 1000)],
)
def test_valid_size_is_parsed_into_bytes(text: str, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "64KB", "64kib", "64K", "1.5MiB", "-1", "1 MiB", "KiB", "1TiB", "9" * 5000]
)
def test_invalid_size_raises_settings_error(text: str) -> None:
    with pytest.raises(SettingsError, match=r'is not a size such as "512B", "64KiB", "1MiB"$'):
        parse_size_bytes(text)


def test_error_repeats_only_a_part_of_a_long_text() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_duration_ms("x" * 10_000)
    assert len(str(caught.value)) < 200


@given(st.integers(min_value=0, max_value=10**12))
def test_formatted_durations_and_sizes_parse_back_to_the_same_quantity(quantity: int) -> None:
    assert parse_duration_ms(format_duration(quantity)) == quantity
    assert parse_size_bytes(format_size(quantity)) == quantity


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [(0, "0s"), (250, "250ms"), (1_500, "1500ms"), (60_000, "1m"), (86_400_000, "24h")],
)
def test_duration_is_formatted_in_its_largest_whole_unit(duration_ms: int, text: str) -> None:
    assert format_duration(duration_ms) == text


@given(st.text())
def test_quoted_text_is_valid_toml_of_the_same_text(text: str) -> None:
    assert tomllib.loads(f"a = {units.quote(text)}") == {"a": text}


# Defaults and the manual


def test_effective_defaults_equal_the_documented_ones() -> None:
    assert tomllib.loads(effective(Config())) == DEFAULTS


def test_load_without_sources_returns_the_defaults() -> None:
    assert load(None, {}, {"auth": {"hmac_secret": SECRET}}) == Config(auth=Auth(hmac_secret=SECRET))


def test_attribute_names_of_settings_carry_their_unit() -> None:
    config = Config()
    assert config.heartbeat.ping_interval_ms == 25_000
    assert config.limits.max_message_bytes == 65_536
    assert config.limits.outbox_bytes == 1 << 20
    assert config.limits.outbox_age_ms == 10_000
    assert config.limits.max_channel_name_bytes == 200
    assert config.limits.byte_rate_per_s == config.limits.message_rate_per_s == 0
    assert config.auth.token_cache_entries == 65_536
    assert config.channels["default"].max_publish_bytes == 65_536


SECTIONS: Final = [
    each for each in vars(settings).values() if isinstance(each, type) and issubclass(each, settings.Section)
]
FIELDS: Final = [
    (section, info)
    for section in SECTIONS
    if section not in (settings.Section, Config)
    for info in settings.fields_of(section)
]


def comment_above(section: type, field: str) -> str:
    source = Path(settings.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    [body] = [
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == section.__name__
    ]
    [line] = [
        node.lineno - 1
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == field
    ]
    above: list[str] = []
    while lines[line - 1].startswith("    # "):
        line -= 1
        above.insert(0, lines[line].removeprefix("    # "))
    return " ".join(above)


def test_number_of_sections_and_fields_is_as_expected() -> None:
    assert len(SECTIONS) == len(DEFAULTS) + 3  # and Section, Config, Key
    assert len(FIELDS) == 80


@pytest.mark.parametrize("info", settings.fields_of(Config), ids=lambda info: info.name)
def test_every_section_has_a_comment_above_it(info: msgspec.inspect.Field) -> None:
    assert f"[{info.name}" in comment_above(Config, info.name)


@pytest.mark.parametrize(("section", "info"), FIELDS, ids=lambda each: getattr(each, "name", each.__class__))
def test_comment_above_a_setting_has_its_meaning_and_default(
    section: type, info: msgspec.inspect.Field
) -> None:
    comment = comment_above(section, info.name)
    if info.required:
        wanted = "No default."
    elif isinstance(info.type, msgspec.inspect.DictType):
        wanted = "Default: none."
    else:
        wanted = f"Default {sources._toml(settings.kind_of(info), info.default)}"
    assert len(comment) > 60
    assert wanted in comment


@pytest.mark.parametrize(("section", "info"), FIELDS, ids=lambda each: getattr(each, "name", each.__class__))
def test_comment_above_a_number_has_its_range_and_unit(section: type, info: msgspec.inspect.Field) -> None:
    setting = next(
        (setting for path, setting in every_setting() if path == (section, info.encode_name)), None
    )
    if setting is None or setting.kind not in ("int", "duration", "size"):
        return
    shown: Callable[[int], str] = {"duration": format_duration, "size": format_size}.get(setting.kind, str)
    kind = {"duration": "Duration, ", "size": "Size, "}.get(setting.kind, "")
    assert f"{kind}{shown(setting.low)} to {shown(setting.high)}." in comment_above(section, info.name)


def every_setting() -> list[tuple[tuple[type, str], sources._Setting]]:
    return [
        ((section, info.encode_name), sources._setting(info))
        for section, info in FIELDS
        if not isinstance(info.type, msgspec.inspect.DictType)
    ]


def test_every_exported_name_of_a_config_module_exists() -> None:
    for module in (wsgate.config, settings, sources, units):
        assert sorted(module.__all__) == list(module.__all__)
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_configuration_is_immutable() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        Config().server.port = 1  # type: ignore[misc]


def test_sections_accept_keyword_arguments_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        Bus("redis://localhost")  # type: ignore[call-arg]


def test_import_of_config_loads_no_event_loop_no_redis_and_few_modules() -> None:
    code = "import sys, wsgate.config; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    loaded = set(output.split())
    assert {name for name in loaded if name.startswith("wsgate.")} == {
        "wsgate.bus_address",
        "wsgate.config",
        "wsgate.config.settings",
        "wsgate.config.setting_files",
        "wsgate.config.sources",
        "wsgate.config.units",
        "wsgate.errors",
    }
    assert not loaded & {"asyncio", "redis", "uvloop", "cryptography", "starlette"}


# Where values come from


def test_flags_override_the_environment_and_the_environment_overrides_the_file(
    toml: Callable[[str], Path],
) -> None:
    path = toml('[server]\nport = 1\nshards = 1\nhost = "a"\n[auth]\nallow_anonymous = true')
    config = load(path, {"WSGATE_SERVER__PORT": "2", "WSGATE_SERVER__SHARDS": "2"}, {"server": {"port": 3}})
    assert (config.server.port, config.server.shards, config.server.host) == (3, 2, "a")


def test_flag_with_value_none_changes_no_setting() -> None:
    config = anonymous({"server": {"port": None}, "bus": None}, {"WSGATE_SERVER__PORT": "2"})
    assert config.server.port == 2


def test_every_setting_can_be_set_in_the_file(toml: Callable[[str], Path]) -> None:
    config = load(toml(EVERYTHING), {}, {})
    written = tomllib.loads(effective(config))
    changed = tomllib.loads(EVERYTHING)
    for section, keys in DEFAULTS.items():
        for key, default in keys.items():
            assert key in changed[section]
            assert written[section][key] != default, f"{section}.{key}"
    assert config.auth.keys["2026/11"] == Key(algorithm="HS384", secret=SECRET * 2)
    assert config.auth.keys["main"] == Key(algorithm="EdDSA", public_key=PEM)
    assert config.channels["Chat-1"].max_publish_bytes == 1


def test_every_setting_can_be_set_in_the_environment() -> None:
    # Keys and namespaces become lower-case, and their names contain only characters of a variable name.
    tree = tomllib.loads(EVERYTHING.replace("2026/11", "y_2026__11").replace("Chat-1", "chat_1"))
    environ: dict[str, str] = {}

    def flatten(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                flatten(below, f"{name}__{key.upper()}" if name else f"WSGATE_{key.upper()}")
        elif isinstance(value, list):
            environ[name] = " ".join(value)
        else:
            environ[name] = str(value).lower() if isinstance(value, bool) else str(value)

    flatten(tree, "")
    assert "WSGATE_AUTH__KEYS__Y_2026__11__SECRET" in environ
    assert load(None, environ, {}) == load(None, {}, tree)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("True", True), ("false", False), ("0", False)]
)
def test_boolean_in_the_environment_is_parsed(text: str, value: bool) -> None:
    assert anonymous(environ={"WSGATE_AUTH__ALLOW_QUERY_TOKEN": text}).auth.allow_query_token is value


@pytest.mark.parametrize(
    ("text", "origins"),
    [("", ()), ("null", ("null",)), (" https://a.example  null ", ("https://a.example", "null"))],
)
def test_list_in_the_environment_is_separated_by_spaces(text: str, origins: tuple[str, ...]) -> None:
    assert anonymous(environ={"WSGATE_SERVER__ALLOWED_ORIGINS": text}).server.allowed_origins == origins


def test_digits_in_the_environment_stay_text_for_a_text_setting() -> None:
    assert anonymous(environ={"WSGATE_AUTH__AUDIENCE": "17"}).auth.audience == "17"


def test_variables_without_the_wsgate_prefix_are_ignored() -> None:
    assert (
        anonymous(environ={"PATH": "/bin", "wsgate_x": "1", "XWSGATE_Y": "1", "WSGATE": "2"}) == anonymous()
    )


def test_variable_wsgate_config_names_the_file(toml: Callable[[str], Path]) -> None:
    path = toml("[server]\nport = 7\n[auth]\nallow_anonymous = true")
    assert load(None, {"WSGATE_CONFIG": str(path)}, {}).server.port == 7


def test_empty_variable_wsgate_config_names_no_file() -> None:
    assert anonymous(environ={"WSGATE_CONFIG": ""}) == anonymous()


def test_given_file_overrides_the_file_of_wsgate_config(toml: Callable[[str], Path]) -> None:
    path = toml("[server]\nport = 7\n[auth]\nallow_anonymous = true")
    assert load(path, {"WSGATE_CONFIG": "/nowhere"}, {}).server.port == 7


def test_default_namespace_exists_without_being_configured(toml: Callable[[str], Path]) -> None:
    config = load(toml("[channels.chat]\n[auth]\nallow_anonymous = true"), {}, {})
    assert config.channels == {"default": settings.Namespace(), "chat": settings.Namespace()}


# Mistakes of one setting


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"server": {"prot": 1}}, "server.prot: unknown setting (did you mean server.port?)"),
        ({"servr": {}}, "servr: unknown setting (did you mean server?)"),
        (
            {"server": {"ping_interval": "1s"}},
            "server.ping_interval: unknown setting (did you mean heartbeat.ping_interval?)",
        ),
        ({"zzz": {"a": 1}}, "zzz: unknown setting"),
        ({"server": {"zzz": 1}}, "server.zzz: unknown setting"),
        ({"server": {"a b": 1}}, 'server."a b": unknown setting'),
        ({"server": {"*": 1}}, 'server."*": unknown setting'),
        (
            {"channels": {"chat": {"subscrib": 1}}},
            "channels.chat.subscrib: unknown setting (did you mean channels.chat.subscribe?)",
        ),
        (
            {"inbox": {"subscribe": "anyone"}},
            "inbox.subscribe: unknown setting (did you mean channels.<name>.subscribe?)",
        ),
        (
            {"auth": {"hmac_secret_fil": "x"}},
            "auth.hmac_secret_fil: unknown setting (did you mean auth.hmac_secret_file?)",
        ),
        ({"server": {"host_file": "x"}}, "server.host_file: unknown setting (did you mean server.host?)"),
        ({"server": 1}, "server: expected table, got int"),
        ({"channels": {"chat": "open"}}, "channels.chat: expected table, got str"),
        ({"auth": {"keys": []}}, "auth.keys: expected table, got list"),
        ({"server": {"port": {}}}, "server.port: expected int, got table"),
        ({"limits": {"max_fragments": "1"}}, "limits.max_fragments: expected int, got str"),
        ({"server": {"port": True}}, "server.port: expected int, got bool"),
        ({"server": {"port": 8000.0}}, "server.port: expected int, got float"),
        ({"server": {"dev": 1}}, "server.dev: expected bool, got int"),
        ({"server": {"host": 1}}, "server.host: expected str, got int"),
        ({"server": {"allowed_origins": "null"}}, "server.allowed_origins: expected list, got str"),
        ({"server": {"allowed_origins": [1]}}, "server.allowed_origins: expected str, got int"),
        ({"auth": {"hmac_secret": 7}}, "auth.hmac_secret: expected str, got int"),
        ({"auth": {"audience": "\udcff"}}, "auth.audience: not UTF-8 text"),
        (
            {"heartbeat": {"ping_interval": "25 apples"}},
            'heartbeat.ping_interval: "25 apples" is not a duration such as "250ms", "25s", "5m", "1h"',
        ),
        (
            {"heartbeat": {"ping_interval": 25}},
            'heartbeat.ping_interval: expected duration such as "25s", got int',
        ),
        (
            {"limits": {"max_message": "64KB"}},
            'limits.max_message: "64KB" is not a size such as "512B", "64KiB", "1MiB"',
        ),
        ({"limits": {"max_message": True}}, 'limits.max_message: expected size such as "64KiB", got bool'),
        (
            {"log": {"format": "xml"}},
            'log.format: expected one of "json", "text", got "xml"',
        ),
        ({"log": {"level": 1}}, "log.level: expected str, got int"),
        (
            {"channels": {"chat": {"publish": "all"}}},
            'channels.chat.publish: expected one of "anyone", "authenticated", "nobody", "token", got "all"',
        ),
        (
            {"auth": {"keys": {"k": {"secret": SECRET}}}},
            "auth.keys.k.algorithm: required, one of"
            ' "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512", "PS256", "PS384", "PS512",'
            ' "RS256", "RS384", "RS512"',
        ),
        (
            {"auth": {"keys": {"k": {"algorithm": "none"}}}},
            "auth.keys.k.algorithm: expected one of"
            ' "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512", "PS256", "PS384", "PS512",'
            ' "RS256", "RS384", "RS512", got "none"',
        ),
    ],
)
def test_mistake_in_one_setting_is_reported_with_its_path(flags: dict[str, Any], said: str) -> None:
    assert mistakes(flags) == [said]


NUMBERS: Final = [
    (path, setting)
    for path, setting in sources._schema().items()
    if setting.kind in ("int", "duration", "size") and path != ("server", "*")
]


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {"chat" if key == "*" else key: value}
    return {**value}


def as_written(kind: str, number: int) -> Any:
    return format_duration(number) if kind == "duration" else number


@pytest.mark.parametrize(("path", "setting"), NUMBERS, ids=lambda each: ".".join(map(str, each)))
def test_number_is_accepted_at_both_ends_of_its_range_and_refused_beyond(
    path: tuple[str, ...], setting: sources._Setting
) -> None:
    shown: Callable[[int], str] = {"duration": format_duration, "size": format_size}.get(setting.kind, str)
    # A heartbeat without a pong timeout is a contradiction, which another test checks.
    steady = {"WSGATE_HEARTBEAT__PING_INTERVAL": "0s"} if path[-1] == "pong_timeout" else {}
    for number in (setting.low, setting.high):
        anonymous(nested(path, as_written(setting.kind, number)), steady)
    outside = [setting.high + 1] + ([setting.low - 1] if setting.low or setting.kind != "duration" else [])
    for number in outside:
        [said] = mistakes(nested(path, as_written(setting.kind, number)))
        named = ".".join(path).replace("*", "chat")
        assert said.startswith(f"{named}: must be {shown(setting.low)} to {shown(setting.high)}, got ")


def test_mistakes_of_all_sources_are_reported_at_once(toml: Callable[[str], Path]) -> None:
    path = toml('[server]\nprot = 1\nport = "x"')
    assert mistakes({"log": {"format": "xml"}}, {"WSGATE_SERVER__SHARDS": "many"}, path) == [
        "server.prot: unknown setting (did you mean server.port?)",
        "server.port: expected int, got str",
        'server.shards: expected int, got "many" (from WSGATE_SERVER__SHARDS)',
        'log.format: expected one of "json", "text", got "xml"',
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("WSGATE_SERVER__PROT", "unknown variable (did you mean WSGATE_SERVER__PORT?)"),
        ("WSGATE_server__port", "unknown variable (did you mean WSGATE_SERVER__PORT?)"),
        ("WSGATE_AUTH__HMACSECRET", "unknown variable (did you mean WSGATE_AUTH__HMAC_SECRET?)"),
        (
            "WSGATE_CHANNELS__CHAT__SUBSCRIB",
            "unknown variable (did you mean WSGATE_CHANNELS__CHAT__SUBSCRIBE?)",
        ),
        ("WSGATE_QQQQQQQ__QQQQQQQ", "unknown variable"),
        ("WSGATE___", None),
        ("WSGATE___PORT", None),
        ("WSGATE_CHANNELS__SUBSCRIBE", None),
        ("WSGATE_CHANNELS____SUBSCRIBE", None),
        ("WSGATE_SERVER__", None),
        ("WSGATE_SERVER__PORT__X", None),
        ("WSGATE_AUTH__KEYS__MAIN", None),
    ],
)
def test_unknown_variable_is_a_mistake_reported_without_its_value(name: str, said: str | None) -> None:
    [line] = mistakes(environ={**ALLOWED, name: "hunter2"})
    assert line.startswith(f"{name}: unknown variable") if said is None else line == f"{name}: {said}"
    assert "hunter2" not in line


def service_links(service: str, *ports: tuple[str, int]) -> dict[str, str]:
    """Return the variables that Kubernetes writes into every container for a Service of this name."""
    prefix = service.upper().replace("-", "_")
    first = ports[0][1]
    links = {
        f"{prefix}_SERVICE_HOST": "10.96.0.7",
        f"{prefix}_SERVICE_PORT": str(first),
        f"{prefix}_PORT": f"tcp://10.96.0.7:{first}",
    }
    for name, port in ports:
        protocol = f"{prefix}_PORT_{port}_TCP"
        links |= {
            f"{prefix}_SERVICE_PORT_{name.upper().replace('-', '_')}": str(port),
            protocol: f"tcp://10.96.0.7:{port}",
            f"{protocol}_PROTO": "tcp",
            f"{protocol}_PORT": str(port),
            f"{protocol}_ADDR": "10.96.0.7",
        }
    return links


@pytest.mark.parametrize(
    "service",
    [
        "wsgate",
        "wsgate-admin",
        "wsgate-server",
        "wsgate-bus",
        "wsgate-log",
        "wsgate-auth",
        "wsgate-2-x",
        "wsgate-a--b",
        "wsgate--a",
        "wsgate-server--x",
        "wsgate-channels--chat--x",
        "wsgate-a---b",
    ],
)
def test_variables_of_a_kubernetes_service_are_ignored_with_one_warning(service: str) -> None:
    links = service_links(service, ("ws", 8000), ("admin-http", 9000))
    assert anonymous(environ=links) == anonymous()
    said = sources.ignored_variables({**links, **ALLOWED, "PATH": "/bin"})
    assert "\n" not in said
    assert min(links) in said
    assert "did you mean" not in said
    assert "10.96" not in said


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WSGATE_SERVER__PROT", "8000"),
        ("WSGATE_SERVRE__PORT", "8000"),
        ("WSGATE_SERVRE__PORT", "tcp://10.96.0.7:8000"),
        ("WSGATE_SERVER__ADMIN_PORT", "8000"),
        ("WSGATE_SERVER__SERVICE_HOST", "10.96.0.7"),
        ("WSGATE_SERVER__PORT_8000_TCP", "tcp://10.96.0.7:8000"),
        ("WSGATE_A__B_SERVICE_HOSTS", "10.96.0.7"),
        ("WSGATE_A__B_PORT_X_TCP", "tcp://10.96.0.7:8000"),
        ("WSGATE_a__b_SERVICE_HOST", "10.96.0.7"),
    ],
)
def test_mistyped_setting_similar_to_a_service_variable_is_a_mistake(name: str, text: str) -> None:
    [line] = mistakes(environ={**ALLOWED, name: text})
    assert line.startswith(f"{name}: unknown variable")
    assert not sources.ignored_variables({name: text})


def test_setting_is_read_although_its_name_is_similar_to_a_service_variable() -> None:
    assert anonymous(environ={"WSGATE_SERVER__PORT": "8001"}).server.port == 8001
    [line] = mistakes(environ={**ALLOWED, "WSGATE_SERVER__PORT": "tcp://10.96.0.7:8000"})
    assert line.startswith("server.port: expected int")


@pytest.mark.parametrize(
    "name", ["WSGATE_", "WSGATE_PORT", "WSGATE_SERVER", "WSGATE_QQQQ", "WSGATE_IMAGE_TAG", "WSGATE_secret"]
)
def test_variable_without_a_section_is_ignored_with_a_warning(name: str) -> None:
    assert anonymous(environ={name: "hunter2"}) == anonymous()
    said = sources.ignored_variables({name: "hunter2"})
    assert name in said and "WSGATE_<SECTION>__<KEY>" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("name", ["WSGATE_TOKEN", "WSGATE_CONFIG", "WSGATE_SANITIZE"])
def test_variable_of_the_commands_of_wsgate_causes_no_warning(name: str) -> None:
    assert not sources.ignored_variables({name: "x", **ALLOWED, "WSGATEWAY": "x"})
    if name != "WSGATE_CONFIG":
        assert anonymous(environ={name: "x"}) == anonymous()


def test_variable_with_one_underscore_is_ignored_and_the_right_name_suggested() -> None:
    said = sources.ignored_variables({"WSGATE_AUTH_HMAC_SECRET": "hunter2", "WSGATE_ADMIN_PORT": "9001"})
    assert "did you mean WSGATE_ADMIN__PORT, WSGATE_AUTH__HMAC_SECRET?" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5_000,
        "a = " + "[" * 5_000 + "]" * 5_000,
        "a = " + "{a=" * 5_000,
        "[server]\nallowed_origins = " + "[" * 5_000,
        "[" + ".".join(["a"] * 5_000) + "]",
        ".".join(["channels"] * 5_000) + " = 1",
    ],
)
def test_deeply_nested_toml_is_reported_as_one_mistake(text: str, toml: Callable[[str], Path]) -> None:
    [said] = mistakes(path=toml(text))
    assert said


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("SERVER__PORT", "", 'server.port: expected int, got ""'),
        ("SERVER__PORT", "1_0", 'server.port: expected int, got "1_0"'),
        ("SERVER__PORT", "-1", "server.port: must be 0 to 65535, got -1"),
        ("SERVER__DEV", "yes", 'server.dev: expected true or false, got "yes"'),
        ("LIMITS__OUTBOX_AGE", "2h", "limits.outbox_age: must be 1ms to 30m, got 2h"),
        ("AUTH__ISSUER", "\udcff", "auth.issuer: not UTF-8 text"),
    ],
)
def test_a_mistake_in_the_environment_names_setting_and_variable(name: str, text: str, said: str) -> None:
    assert mistakes(environ={f"WSGATE_{name}": text}) == [f"{said} (from WSGATE_{name})"]


def test_missing_file_is_reported_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert mistakes(path=path) == [f"cannot read {path}: No such file or directory"]


def test_malformed_toml_file_is_reported_with_path_and_line(toml: Callable[[str], Path]) -> None:
    path = toml("[server]\nport = \n")
    [said] = mistakes(path=path)
    assert said.startswith(f"{path}: ")
    assert "line 2" in said


def test_file_that_is_not_utf_8_is_reported_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[server]\nhost = "\xe9"')
    assert mistakes(path=path) == [f"{path} is not UTF-8 text"]


# Mistakes between settings


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"server": {"host": ""}}, "server.host: must not be empty"),
        ({"server": {"path": "ws"}}, 'server.path: must begin with "/"'),
        ({"server": {"path": ""}}, 'server.path: must begin with "/"'),
        ({"server": {"path": "/ws?x"}}, 'server.path: must begin with "/"'),
        ({"server": {"path": "/ws#x"}}, 'server.path: must begin with "/"'),
        ({"server": {"path": "/w s"}}, 'server.path: must begin with "/"'),
        ({"server": {"path": "/ws\n"}}, 'server.path: must begin with "/"'),
        ({"server": {"path": "/readyz"}}, "server.path: the client port uses /readyz for another answer"),
        (
            {"server": {"path": "/client.js"}},
            "server.path: the client port uses /client.js for another answer",
        ),
        ({"heartbeat": {"pong_timeout": "0"}}, "heartbeat.pong_timeout: must be more than 0 while"),
        (
            {"auth": {"hmac_secret": "x" * 31}},
            "auth.hmac_secret: must be at least 32 bytes for HS256, has 31",
        ),
        ({"auth": {"allow_anonymous": False}}, "auth: no client can connect"),
        (
            {"auth": {"keys": {"": {"algorithm": "HS256", "secret": SECRET}}}},
            'auth.keys."": a key needs a name',
        ),
        ({"admin": {"host": ""}}, "admin.host: must not be empty"),
        ({"admin": {"host": "0.0.0.0"}}, "admin.api_key: required, because admin.host"),
        ({"admin": {"host": "::"}}, "admin.api_key: required, because admin.host"),
        ({"admin": {"host": "localhost.example"}}, "admin.api_key: required, because admin.host"),
        ({"admin": {"host": "128.0.0.1"}}, "admin.api_key: required, because admin.host"),
        (
            {"server": {"dev": True}, "admin": {"host": "0.0.0.0"}},
            "admin.api_key: required, because admin.host",
        ),
        ({"bus": {"prefix": ""}}, "bus.prefix: must be 1 to 32"),
        ({"bus": {"prefix": "x" * 33}}, "bus.prefix: must be 1 to 32"),
        ({"bus": {"prefix": "a:b"}}, "bus.prefix: must be 1 to 32"),
        ({"bus": {"prefix": "{a}"}}, "bus.prefix: must be 1 to 32"),
        ({"channels": {"a b": {}}}, 'channels."a b": a namespace is made of letters'),
        ({"channels": {"": {}}}, 'channels."": a namespace is made of letters'),
        ({"channels": {"*": {}}}, 'channels."*": a namespace is made of letters'),
        ({"channels": {"é": {}}}, 'channels."é": a namespace is made of letters'),
        ({"channels": {"a\n": {}}}, 'channels."a\\n": a namespace is made of letters'),
    ],
)
def test_contradiction_between_settings_is_reported_with_its_path(flags: dict[str, Any], said: str) -> None:
    flags = {**flags, "auth": {"allow_anonymous": True, **flags.get("auth", {})}}
    [line] = mistakes(flags)
    assert line.startswith(said)


@pytest.mark.parametrize(
    "origin",
    [
        "https://a.example/",
        "https://a.example/x",
        "https://A.example",
        "HTTPS://a.example",
        "a.example",
        "https://",
        "https://a.example:",
        "https://a.example:0",
        "https://a.example:65536",
        "https://u@a.example",
        "https://*.a.example",
        "*",
        "NULL",
        "",
        "https://a.example\n",
        "https://é.example",
        "Wss:",
        "Https://",
        "file:",
        "file:///",
        "file:///android_asset/index.html",
        "app://a.example/",
        "app://a.example?",
        "app://u@a.example",
        "chrome-extension://*",
        "app://a, app://b",
        "app://a app://b",
        "://localhost",
    ],
)
def test_origin_that_no_browser_sends_is_reported_with_its_index(origin: str) -> None:
    [line] = mistakes({"auth": {"allow_anonymous": True}, "server": {"allowed_origins": ["null", origin]}})
    assert line.startswith("server.allowed_origins[1]: ")


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "https://a-b.example",
        "https://[2001:db8::1]:1",
        "null",
        "file://",
        "capacitor://localhost",
        "ionic://localhost",
        "tauri://localhost",
        "app://obsidian.md",
        "app://-",
        "app://",
        "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
        "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc",
        "safari-web-extension://4A6D2B7C-91F0-4E3A-8B52-0C6F1D9E7A35",
        "vscode-webview://0a1b2c",
        "com.example.app://localhost:8080",
    ],
)
def test_valid_origin_is_accepted_by_configuration_and_origin_policy(origin: str) -> None:
    assert anonymous({"server": {"allowed_origins": [origin]}}).server.allowed_origins == (origin,)
    assert OriginPolicy((origin,), same_host=False).allows(origin, "gate.example")
    assert not OriginPolicy((), same_host=False).allows(origin, "gate.example")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_admin_port_on_loopback_needs_no_api_key(host: str) -> None:
    assert anonymous({"admin": {"host": host}}).admin.host == host


def test_admin_port_on_other_addresses_is_accepted_with_an_api_key() -> None:
    key = "0123456789abcdef"
    assert anonymous({"admin": {"host": "0.0.0.0", "api_key": key}}).admin.api_key == key
    assert anonymous({"admin": {"api_key": "k"}}).admin.api_key == "k", "reachable only from this machine"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "gateway.example", "10.0.0.7"])
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("a", "must be at least 16 bytes"),
        ("a" * 15, "at least 16"),
        ("a" * 64, "guessed"),
        ("abcdefg" * 9, "guessed"),
    ],
)
def test_weak_api_key_is_refused_if_the_admin_port_is_reachable(host: str, key: str, said: str) -> None:
    (line,) = mistakes({"auth": {"hmac_secret": SECRET}, "admin": {"host": host, "api_key": key}})
    assert line.startswith("admin.api_key: ") and said in line and key not in line.partition(": ")[2].split()


WEAK: Final = (
    "a",
    "ab",
    "hunter2",
    "12345678",
    "password",
    "0123456789",
    "correct horse b",
    "\u00e9",
    "\u00e9a",
)


@pytest.mark.parametrize("text", WEAK)
@pytest.mark.parametrize(("algorithm", "least"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_secret_that_repeats_a_short_text_is_refused(text: str, algorithm: str, least: int) -> None:
    for length in (least, least + 1, least + 7, 200):
        secret = (text * 200)[:length]
        keys = {"k": {"algorithm": algorithm, "secret": secret}}
        (line,) = mistakes({"auth": {"keys": keys}})
        assert line.startswith("auth.keys.k.secret: can be guessed") and secret not in line
    (line,) = mistakes({"auth": {"hmac_secret": (text * 200)[:64]}})
    assert line.startswith("auth.hmac_secret: can be guessed")


@given(st.binary(min_size=32, max_size=64), st.sampled_from(["hex", "base64"]))
@settings_of_hypothesis(max_examples=200)
def test_secret_of_random_bytes_is_never_refused_as_weak(secret: bytes, form: str) -> None:
    text = hashlib.sha256(secret).hexdigest() if form == "hex" else secrets.token_urlsafe(32)
    assert load(None, {}, {"auth": {"hmac_secret": text}}).auth.hmac_secret == text


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o666, 0o606, 0o602])
@pytest.mark.parametrize(
    "text",
    [
        f'[auth]\nhmac_secret = "{SECRET}"\n',
        f'[auth]\nallow_anonymous = true\n[admin]\napi_key = "{SECRET}"\n',
        '[auth]\nallow_anonymous = true\n[bus]\nurl = "redis://u:hunter2@host:1"\n',
        '[auth]\nallow_anonymous = true\n[bus]\nurl = "redis://host:1"\npassword = "hunter2"\n',
        f'[auth.keys.k]\nalgorithm = "HS256"\nsecret = "{SECRET}"\n',
    ],
)
def test_configuration_file_with_a_secret_that_others_may_use_is_refused(
    toml: Callable[[str], Path], text: str, mode: int
) -> None:
    path = toml(text)
    path.chmod(mode)
    (line,) = mistakes(path=path)
    assert str(path) in line and f"{mode:04o}" in line and "hunter2" not in line and SECRET not in line
    (line,) = mistakes(environ={"WSGATE_CONFIG": str(path)})
    assert str(path) in line
    path.chmod(0o600)
    load(path, {}, {})


def test_configuration_file_without_a_secret_may_be_readable_by_all(
    toml: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o600)
    text = f'[auth]\nhmac_secret_file = "{tmp_path}/secret"\n[bus]\nurl = "redis://host:1"\n'
    path = toml(text)
    path.chmod(0o644)
    assert load(path, {}, {}).auth.hmac_secret == SECRET


@pytest.mark.parametrize(
    "value", [SECRET, "hunter2", "s3cret", "secret words", "123456789012345678", "x" * 300]
)
def test_error_does_not_repeat_a_value_in_the_wrong_variable(value: str) -> None:
    for path, setting in sources._schema().items():
        if setting.kind in ("str", "secret", "secret_url", "public_key") or setting.kind.endswith("_file"):
            continue
        name = "WSGATE_" + "__".join("K" if key == "*" else key for key in path).upper()
        with contextlib.suppress(SettingsError):
            load(None, {name: value, **ALLOWED}, {})
            continue
        for line in mistakes(environ={name: value, **ALLOWED}):
            if line.startswith("server.allowed_origins") or line.startswith("server.trusted_proxies"):
                continue
            assert value not in line and value[:8] not in line, line
            assert not any(word in line.split() for word in value.split()), line


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost:6379/0",
        "redis://:p@localhost",
        "redis://u:p%40@h:1",
        "redis://[::1]:6379",
        "unix:///run/redis.sock",
        "unix://u:p@/run/redis.sock",
        "redis://h?password=p",
        "rediss://u:p@h",
        "redis+sentinel://h1,h2:26380/main",
        "redis+cluster://h1,h2",
    ],
)
def test_valid_bus_url_is_accepted(url: str) -> None:
    assert anonymous({"bus": {"url": url}}).bus.url == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://hunter2", "bus.url: must be one of redis://, rediss://, unix://"),
        ("hunter2", "bus.url: must be one of redis://, rediss://, unix://"),
        ("redis:hunter2", "bus.url: must be one of redis://, rediss://, unix://"),
        ("redis://:hunter2@h/1", "bus.url: only database 0"),
        ("redis://:hunter2@h?db=1", "bus.url: only database 0"),
        ("redis://h?token=hunter2", "bus.url: only database 0"),
        ("redis://", "bus.url: this is not a URL"),
        ("redis://:hunter2@", "bus.url: this is not a URL"),
        ("redis://h:hunter2", "bus.url: this is not a URL"),
        ("redis://h:0", "bus.url: this is not a URL"),
        ("redis://[hunter2", "bus.url: this is not a URL"),
        ("redis://u:1/hunter2@h", "bus.url: this is not a URL"),
        ("redis://u:1#hunter2@h", "bus.url: this is not a URL"),
        ("redis://h hunter2", "bus.url: this is not a URL"),
        ("unix://", "bus.url: this is not a URL"),
        ("unix://run/hunter2.sock", "bus.url: this is not a URL"),
        ("unix://:hunter2/x@/run/redis.sock", "bus.url: this is not a URL"),
    ],
)
def test_invalid_bus_url_is_refused_without_showing_the_url(url: str, said: str) -> None:
    [line] = mistakes({"auth": {"allow_anonymous": True}, "bus": {"url": url}})
    assert line.startswith(said)
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"algorithm": "HS256"}, ["secret: required for HS256"]),
        ({"algorithm": "HS256", "secret": "x" * 31}, ["secret: must be at least 32 bytes for HS256, has 31"]),
        ({"algorithm": "HS384", "secret": "x" * 47}, ["secret: must be at least 48 bytes for HS384, has 47"]),
        ({"algorithm": "HS512", "secret": "x" * 63}, ["secret: must be at least 64 bytes for HS512, has 63"]),
        ({"algorithm": "RS256"}, ["public_key: required for RS256"]),
        ({"algorithm": "ES256", "public_key": "x"}, ["public_key: must be a public key in PEM"]),
        (
            {"algorithm": "EdDSA", "public_key": PEM.replace("PUBLIC", "PRIVATE")},
            ["public_key: must be a public key in PEM"],
        ),
        (
            {"algorithm": "HS256", "secret": SECRET, "public_key": PEM},
            ["public_key: HS256 takes a secret, not a public_key"],
        ),
        (
            {"algorithm": "RS256", "secret": SECRET},
            ["secret: RS256 takes a public_key, not a secret", "public_key: required for RS256"],
        ),
    ],
)
def test_key_without_the_exact_material_of_its_algorithm_is_refused(
    key: dict[str, str], said: list[str]
) -> None:
    assert mistakes({"auth": {"keys": {"k": key}}}) == [f"auth.keys.k.{line}" for line in said]


@pytest.mark.parametrize(("algorithm", "length"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_secret_length_is_counted_in_bytes_and_the_hash_length_suffices(algorithm: str, length: int) -> None:
    letters = "éàèùâêîôûëïüçœæÿñöäßåøþðÉÀÈÙÂÊÎÔ"
    key = {"algorithm": algorithm, "secret": letters[: length // 2]}
    assert load(None, {}, {"auth": {"keys": {"k": key}}}).auth.keys["k"].algorithm == algorithm


@pytest.mark.parametrize(
    "flags",
    [
        {"auth": {"hmac_secret": SECRET}},
        {"auth": {"keys": {"k": {"algorithm": "ES256", "public_key": PEM}}}},
        {"auth": {"allow_anonymous": True}},
        {"server": {"dev": True}, "auth": {"allow_anonymous": False}},
    ],
)
def test_configuration_with_one_way_to_authenticate_is_accepted(flags: dict[str, Any]) -> None:
    load(None, {}, flags)


def test_contradictions_are_reported_all_at_once() -> None:
    assert len(mistakes({"server": {"host": "", "path": "x"}, "bus": {"prefix": ""}})) == 4


# Secrets


FILES: Final = [
    ({"auth": {"hmac_secret_file": "?"}}, "auth.hmac_secret_file"),
    ({"admin": {"api_key_file": "?"}}, "admin.api_key_file"),
    ({"bus": {"url_file": "?"}}, "bus.url_file"),
    ({"auth": {"keys": {"k": {"algorithm": "HS256", "secret_file": "?"}}}}, "auth.keys.k.secret_file"),
]


def with_file(tree: Mapping[str, Any], file: str) -> dict[str, Any]:
    return {
        key: with_file(value, file) if isinstance(value, dict) else file if value == "?" else value
        for key, value in tree.items()
    }


def secret_at(config: Config, path: str) -> str:
    value: Any = config
    for key in path.removesuffix("_file").split("."):
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    return str(value)


@pytest.mark.parametrize(("tree", "path"), FILES)
def test_secret_is_read_from_its_file(
    tree: dict[str, Any], path: str, secret_file: Callable[..., str]
) -> None:
    secret = "unix://u:p@/run/redis.sock-and-more" if "url" in path else SECRET
    config = load(None, ALLOWED, with_file(tree, secret_file(secret + "\n")))
    assert secret_at(config, path) == secret


@pytest.mark.parametrize(("tree", "path"), FILES)
@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_secret_file_readable_by_its_group_is_accepted(
    tree: dict[str, Any], path: str, mode: int, secret_file: Callable[..., str]
) -> None:
    secret = "unix://u:p@/run/redis.sock-and-more" if "url" in path else SECRET
    config = load(None, ALLOWED, with_file(tree, secret_file(secret, mode=mode)))
    assert secret_at(config, path) == secret


@pytest.mark.parametrize(("tree", "path"), FILES)
def test_secret_file_behind_kubernetes_symbolic_links_is_accepted(
    tree: dict[str, Any], path: str, tmp_path: Path
) -> None:
    """A secret volume has `secret` -> `..data/secret` and `..data` -> a directory that is replaced whole."""
    secret = "unix://u:p@/run/redis.sock-and-more" if "url" in path else SECRET
    for version, text in (("..2026_01", secret), ("..2026_02", "x" + secret[1:])):
        (tmp_path / version).mkdir()
        (tmp_path / version / "secret").write_text(text)
        (tmp_path / version / "secret").chmod(0o440)
    (tmp_path / "..data").symlink_to("..2026_01")
    (tmp_path / "secret").symlink_to("..data/secret")
    config = load(None, ALLOWED, with_file(tree, str(tmp_path / "secret")))
    assert secret_at(config, path) == secret
    (tmp_path / "..2026_01" / "secret").chmod(0o444)
    [said] = mistakes(with_file(tree, str(tmp_path / "secret")), ALLOWED)
    assert said.startswith(f"{path}: others can use the file (mode 0444)")


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
@pytest.mark.parametrize(("owner", "is_taken"), [(0, True), (1234, True), (4321, False)])
def test_secret_file_must_belong_to_root_or_the_own_user(
    mode: int, owner: int, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of a file can change the file."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    status = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    if is_taken:
        setting_files.check_file(status, is_secret=True)
    else:
        with pytest.raises(SettingsError, match="belongs to user 4321"):
            setting_files.check_file(status, is_secret=True)
    setting_files.check_file(status, is_secret=False)


@pytest.mark.parametrize(("tree", "path"), FILES)
@pytest.mark.parametrize("mode", [0o644, 0o444, 0o604, 0o620, 0o602, 0o601, 0o610, 0o660, 0o777])
def test_secret_file_that_others_can_use_is_refused(
    tree: dict[str, Any], path: str, mode: int, secret_file: Callable[..., str]
) -> None:
    [said] = mistakes(with_file(tree, secret_file(SECRET, mode=mode)), ALLOWED)
    assert said.startswith(f"{path}: others can use the file (mode {mode:04o}): chmod 640 or 600 it; ")
    assert "defaultMode" in said and "fsGroup" in said


def test_public_key_file_may_be_readable_by_all(secret_file: Callable[..., str]) -> None:
    key = {"algorithm": "RS256", "public_key_file": secret_file(PEM, mode=0o644)}
    config = load(None, {}, {"auth": {"keys": {"k": key}}})
    assert config.auth.keys["k"].public_key == PEM.rstrip("\n")


@pytest.mark.parametrize(
    ("end", "kept"), [("", ""), ("\n", ""), ("\r\n", ""), ("\n\n", "\n"), (" \n", " "), ("\r", "\r")]
)
def test_one_trailing_newline_of_a_secret_file_is_removed(
    end: str, kept: str, secret_file: Callable[..., str]
) -> None:
    config = load(None, {"WSGATE_AUTH__HMAC_SECRET_FILE": secret_file(SECRET + end)}, {})
    assert config.auth.hmac_secret == SECRET + kept


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n", "the file is empty"),
        (b"\xff" * 40, "the file is not UTF-8 text"),
        (b"x" * 65_537, "the file is larger than 64KiB"),
    ],
)
def test_secret_file_that_is_empty_too_large_or_no_text_is_refused(
    content: bytes, said: str, secret_file: Callable[..., str]
) -> None:
    flags = {"auth": {"hmac_secret_file": secret_file(content)}}
    assert mistakes(flags) == [f"auth.hmac_secret_file: {said}"]


def test_unreadable_secret_file_is_reported_by_its_setting_without_the_path() -> None:
    # An operator who confuses the two settings has written the secret here.
    [said] = mistakes(environ={"WSGATE_AUTH__HMAC_SECRET_FILE": SECRET})
    assert said == "auth.hmac_secret_file: cannot read the file: No such file or directory"


def test_secret_path_with_a_zero_byte_is_reported_as_a_mistake() -> None:
    [said] = mistakes({"auth": {"hmac_secret_file": "a\0b"}})
    assert said.startswith("auth.hmac_secret_file: cannot read the file: ")


def test_secret_path_that_is_no_regular_file_is_refused_without_blocking(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    said = "auth.hmac_secret_file: this is not a regular file"
    assert mistakes({"auth": {"hmac_secret_file": str(pipe)}}) == [said]
    [said] = mistakes({"auth": {"hmac_secret_file": str(tmp_path)}})
    assert said.startswith("auth.hmac_secret_file: ")


@pytest.mark.parametrize(("tree", "path"), FILES)
def test_secret_given_as_value_and_file_is_refused(
    tree: dict[str, Any], path: str, secret_file: Callable[..., str]
) -> None:
    own = path.removesuffix("_file")
    name = "WSGATE_" + own.replace(".", "__").upper()
    environ = {
        name: "hunter2",
        f"{name}_FILE": secret_file(SECRET),
        "WSGATE_AUTH__KEYS__K__ALGORITHM": "HS256",
    }
    assert mistakes(environ=environ) == [f"{path}: {own} is given as well; only one of them can count"]


def test_empty_secret_or_secret_file_counts_as_not_given(secret_file: Callable[..., str]) -> None:
    file = secret_file(SECRET)
    for auth in (
        {"hmac_secret": "", "hmac_secret_file": file},
        {"hmac_secret_file": file, "hmac_secret": ""},
    ):
        assert load(None, {}, {"auth": auth}).auth.hmac_secret == SECRET
    assert (
        load(None, {}, {"auth": {"hmac_secret": SECRET, "hmac_secret_file": ""}}).auth.hmac_secret == SECRET
    )


def test_secret_of_a_later_source_replaces_a_secret_file_unread() -> None:
    environ = {"WSGATE_AUTH__HMAC_SECRET_FILE": "/nowhere"}
    assert load(None, environ, {"auth": {"hmac_secret": SECRET}}).auth.hmac_secret == SECRET


def test_secret_file_of_a_later_source_replaces_a_secret(
    toml: Callable[[str], Path], secret_file: Callable[..., str]
) -> None:
    path = toml(f'[auth]\nhmac_secret = "{SECRET}, again"')
    environ = {"WSGATE_AUTH__HMAC_SECRET_FILE": secret_file(SECRET)}
    assert load(path, environ, {}).auth.hmac_secret == SECRET


def test_error_about_a_short_secret_does_not_show_the_secret() -> None:
    flags = {"auth": {"hmac_secret": "hunter2", "keys": {"k": {"algorithm": "HS512", "secret": "hunter2"}}}}
    assert "hunter2" not in "".join(mistakes(flags))


def secretive() -> Config:
    return load(
        None,
        {},
        {
            "auth": {
                "hmac_secret": f"hunter2 {SECRET}",
                "keys": {"k": {"algorithm": "HS256", "secret": f"{SECRET} hunter2"}},
            },
            "admin": {"api_key": "hunter2"},
            "bus": {"url": "redis://user:hunter2@redis.example:6380/0?password=hunter2&db=0"},
        },
    )


@pytest.mark.parametrize("show", [effective, repr, str, lambda config: repr(config.__rich_repr__())])
def test_effective_configuration_and_repr_show_no_secret(show: Callable[[Config], str]) -> None:
    shown = show(secretive())
    assert "hunter2" not in shown
    assert "redis://user:***@redis.example:6380/0?password=***&db=0" in shown
    assert shown.count("***") == 5


def test_repr_of_a_malformed_bus_url_shows_no_secret() -> None:
    assert "hunter2" not in repr(Bus(url="redis://:1/hunter2@h"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://user@localhost", "redis://user@localhost"),
        ("redis://:p@localhost", "redis://:***@localhost"),
        ("redis://u:a@b@localhost", "redis://u:***@localhost"),
        ("rediss://u:p@[::1]:1/0", "rediss://u:***@[::1]:1/0"),
        ("unix:///run/a:b@c.sock", "unix:///run/a:b@c.sock"),
        ("unix://u:p@/run/redis.sock", "unix://u:***@/run/redis.sock"),
        ("unix:///run/r.sock?username=u&password=p@q", "unix:///run/r.sock?username=u&password=***"),
    ],
)
def test_masking_of_a_bus_url_hides_only_the_password(url: str, shown: str) -> None:
    assert settings.masked("secret_url", url) == shown


@given(
    st.text(st.sampled_from("ab1:/@?#&=%[]. "), max_size=12),
    st.text(st.sampled_from("ab1:/@?#&=% "), max_size=12),
)
def test_repr_of_a_bus_url_hides_passwords_with_any_characters(before: str, after: str) -> None:
    for url in (f"redis://u:{before}XYZ{after}@host:1/0", f"unix://:{before}XYZ{after}@/run/redis.sock"):
        assert "XYZ" not in repr(Bus(url=url))


# Development mode


def test_development_mode_opens_settings_that_were_not_set() -> None:
    config = load(None, {"WSGATE_CHANNELS__CHAT__MAX_PUBLISH": "1KiB"}, {"server": {"dev": True}})
    assert config.auth.allow_anonymous
    assert {(each.subscribe, each.publish) for each in config.channels.values()} == {("anyone", "anyone")}
    assert set(config.channels) == {"default", "chat"}


def test_development_mode_keeps_settings_that_were_set(toml: Callable[[str], Path]) -> None:
    path = toml('[auth]\nallow_anonymous = false\n[channels.default]\nsubscribe = "token"\n[channels.chat]')
    config = load(path, {"WSGATE_SERVER__DEV": "1", "WSGATE_CHANNELS__CHAT__PUBLISH": "nobody"}, {})
    assert not config.auth.allow_anonymous
    assert (config.channels["default"].subscribe, config.channels["default"].publish) == ("token", "anyone")
    assert (config.channels["chat"].subscribe, config.channels["chat"].publish) == ("anyone", "nobody")


@pytest.mark.parametrize("dev", [True, False])
def test_unlisted_namespaces_are_open_only_in_development_mode(dev: bool) -> None:
    assert anonymous({"server": {"dev": dev}}).open_namespaces is dev


@pytest.mark.parametrize(
    ("environ", "flags", "host"),
    [
        ({}, {"dev": True}, "127.0.0.1"),
        ({"WSGATE_SERVER__DEV": "true"}, {}, "127.0.0.1"),
        ({}, {"dev": True, "host": "0.0.0.0"}, "0.0.0.0"),
        ({"WSGATE_SERVER__HOST": "::"}, {"dev": True}, "::"),
        ({}, {"dev": True, "host": None}, "127.0.0.1"),
        ({}, {"dev": False}, "0.0.0.0"),
    ],
)
def test_development_mode_listens_on_loopback_unless_a_host_is_set(
    environ: dict[str, str], flags: dict[str, Any], host: str
) -> None:
    assert anonymous({"server": flags}, environ).server.host == host


def test_development_mode_changes_no_other_settings() -> None:
    flags: dict[str, Any] = {"channels": {"default": {"subscribe": "token", "publish": "nobody"}}}
    dev = anonymous({**flags, "server": {"dev": True}})
    assert msgspec.structs.replace(dev, server=settings.Server()) == anonymous(flags)


# There and back


def test_effective_configuration_with_its_secrets_loads_to_an_equal_one(
    toml: Callable[[str], Path],
) -> None:
    config = load(toml(EVERYTHING), {}, {})
    text = effective(config)
    for key in ("hmac_secret", "api_key", "password"):
        text = text.replace(f'{key} = "***"', f'{key} = "{SECRET}"')
    text = re.sub(r'^secret = "\*\*\*"', f'secret = "{SECRET * 2}"', text, flags=re.MULTILINE)
    text = text.replace("user:***@", f"user:{SECRET.split()[0]}@")
    assert load(toml(text), {}, {}) == config


def test_effective_configuration_of_development_mode_loads_to_an_equal_one(
    toml: Callable[[str], Path],
) -> None:
    config = load(None, {}, {"server": {"dev": True}, "channels": {"chat": {"publish": "nobody"}}})
    assert load(toml(effective(config)), {}, {}) == config


def test_masked_effective_configuration_has_only_the_mistake_of_short_secrets(
    toml: Callable[[str], Path],
) -> None:
    said = mistakes(path=toml(effective(secretive())))
    assert [line.partition(":")[0] for line in said] == ["auth.hmac_secret", "auth.keys.k.secret"]
    assert all("must be at least 32 bytes" in line for line in said)


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_text_is_unchanged_after_formatting_and_loading(audience: str, kid: str) -> None:
    keys = {kid: Key(algorithm="ES256", public_key=PEM)}
    config = Config(auth=Auth(audience=audience, keys=keys))
    assert load(None, {}, tomllib.loads(effective(config))) == config
