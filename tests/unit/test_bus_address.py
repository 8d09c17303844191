"""Check bus URLs: their parsed address, refused ones, and that the configuration agrees."""

import pytest

from wsgate.bus import Names
from wsgate.bus_address import BusAddress, BusTls, mask_password, parse_address, with_password
from wsgate.config import load
from wsgate.errors import SettingsError

TAKEN = [
    ("redis://localhost", BusAddress()),
    ("redis://u:a@b@h", BusAddress("h", username="u", password="a@b")),
    ("unix:///run/a@b.sock", BusAddress(path="/run/a@b.sock")),
    ("redis://bus.example:7000/0", BusAddress("bus.example", 7000)),
    ("redis://[::1]:6380", BusAddress("::1", 6380)),
    ("redis://u:p%40%2Fss@h", BusAddress("h", username="u", password="p@/ss")),
    ("redis://:p@h", BusAddress("h", password="p")),
    ("redis://u@h", BusAddress("h", username="u")),
    ("redis://h?username=u&password=p%26", BusAddress("h", username="u", password="p&")),
    ("redis://h?db=0", BusAddress("h")),
    ("unix:///run/redis.sock", BusAddress(path="/run/redis.sock")),
    ("unix://u:p@/run/a%20b.sock", BusAddress(path="/run/a b.sock", username="u", password="p")),
    ("unix:///run/redis.sock?password=p&db=0", BusAddress(path="/run/redis.sock", password="p")),
    ("rediss://u:p@h:1", BusAddress("h", 1, username="u", password="p", tls=BusTls())),
    (
        "rediss://h?ssl_ca_certs=/a.pem&ssl_certfile=/b.pem&ssl_keyfile=/c.pem",
        BusAddress("h", tls=BusTls("/a.pem", "/b.pem", "/c.pem")),
    ),
    (
        "redis+sentinel://u:p@a,b:7,[::1]/main?sentinel_username=s&sentinel_password=q",
        BusAddress(
            username="u",
            password="p",
            kind="sentinel",
            hosts=(("a", 26379), ("b", 7), ("::1", 26379)),
            master="main",
            sentinel_username="s",
            sentinel_password="q",
        ),
    ),
    ("rediss+sentinel://a/m", BusAddress(kind="sentinel", hosts=(("a", 26379),), master="m", tls=BusTls())),
    ("redis+cluster://a,b:7,a", BusAddress(kind="cluster", hosts=(("a", 6379), ("b", 7)))),
    ("rediss+cluster://:p@a/0", BusAddress(password="p", kind="cluster", hosts=(("a", 6379),), tls=BusTls())),
]
REFUSED = [
    ("redis://:hunter2@h/1", "only database 0"),
    ("redis://:hunter2@h/hunter2", "only database 0|not a URL"),
    ("redis://:hunter2@h?db=7", "only database 0"),
    ("redis://h?token=hunter2", "only database 0"),
    ("redis://h?ssl_ca_certs=hunter2", "no options but"),
    ("redis://h?sentinel_password=hunter2", "no options but"),
    ("unix:///run/redis.sock?db=2&password=hunter2", "only database 0"),
    ("redis://h:hunter2", "not a URL"),
    ("redis://:hunter2@h:0", "not a URL"),
    ("redis://:hunter2@h:65536", "not a URL"),
    ("redis://[hunter2", "not a URL"),
    ("redis://:hunter2@", "not a URL"),
    ("redis://:hunter2@h/@", "not a URL"),
    ("redis://:hunter2 @h", "not a URL"),
    ("redis://:hunter2@a,b", "several hosts"),
    ("redis+sentinel://:hunter2@h", "primary's name"),
    ("redis+sentinel://:hunter2@h/a/b", "primary's name"),
    ("redis+cluster://:hunter2@h,,g", "not a URL"),
    ("redis+cluster://:hunter2@h/3", "only database 0"),
    ("unix://hunter2/redis.sock", "not a URL"),
    ("unix://", "not a URL"),
    ("http://hunter2", "must be one of"),
    ("hunter2", "must be one of"),
    ("redis+other://hunter2", "must be one of"),
]


def configured(url: str) -> str:
    """Return the error of the configuration about a bus URL, or an empty text."""
    try:
        load(None, {}, {"server": {"dev": True}, "bus": {"url": url}})
    except SettingsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("url", "address"), TAKEN)
def test_valid_bus_url_is_parsed_and_accepted_by_the_configuration(url: str, address: BusAddress) -> None:
    assert parse_address(url) == address
    assert configured(url) == ""


@pytest.mark.parametrize(("url", "said"), REFUSED)
def test_invalid_bus_url_is_refused_by_parser_and_configuration_without_its_password(
    url: str, said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_address(url)
    for line in (str(caught.value), configured(url)):
        assert any(words in line for words in said.split("|"))
        assert "hunter2" not in line


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (BusAddress("h", 1, username="hunter1", password="hunter2"), "redis://h:1"),
        (BusAddress("::1", 1), "redis://[::1]:1"),
        (BusAddress(path="/run/r.sock", password="hunter2"), "unix:///run/r.sock"),
        (parse_address("rediss://u:hunter2@h"), "rediss://h:6379"),
        (
            parse_address("redis+sentinel://a,[::1]:7/m?sentinel_password=hunter2"),
            "redis+sentinel://a:26379,[::1]:7/m",
        ),
        (parse_address("rediss+cluster://:hunter2@a,b"), "rediss+cluster://a:6379,b:6379"),
    ],
)
def test_text_of_an_address_contains_neither_user_nor_password(address: BusAddress, shown: str) -> None:
    assert str(address) == shown
    assert "hunter2" not in repr(address)


def test_bus_names_are_the_prefix_and_the_unchanged_channel_name_s26() -> None:
    names = Names("wsgate")
    assert names.channel(b"a\r\n b*\x00{}") == b"wsgate:ch:a\r\n b*\x00{}"
    assert names.probe("n", 3) == b"wsgate:probe:n:3"
    assert not names.probe("n", 3).startswith(names.channels)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://u:hunter2@h:1/0?db=0", "redis://u:***@h:1/0?db=0"),
        ("redis://h?password=hunter2&db=0", "redis://h?password=***&db=0"),
        (
            "redis+sentinel://:hunter2@a,b/m?sentinel_password=hunter2",
            "redis+sentinel://:***@a,b/m?sentinel_password=***",
        ),
        ("redis://u@h", "redis://u@h"),
        ("redis://:hunter2@h@", "***"),
        ("", ""),
    ],
)
def test_passwords_in_a_bus_url_are_masked(url: str, masked: str) -> None:
    assert mask_password(url) == masked


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("redis://h:1/0", "redis://:p%40ss@h:1/0"),
        ("redis://u:old@h", "redis://u:p%40ss@h"),
        ("redis://u@h?password=old&db=0", "redis://u:p%40ss@h?db=0"),
        ("redis+cluster://a,b", "redis+cluster://:p%40ss@a,b"),
        ("unix:///run/r.sock?password=old", "unix://:p%40ss@/run/r.sock"),
    ],
)
def test_separate_password_replaces_the_password_of_the_url(url: str, whole: str) -> None:
    assert with_password(url, "p@ss") == whole
    assert parse_address(whole).password == "p@ss"
    assert with_password(url, "") == url


def test_address_of_a_cluster_server_keeps_credentials_and_tls() -> None:
    address = parse_address("rediss+cluster://u:p@a,b")
    assert address.is_cluster
    assert address.server("c", 9) == BusAddress("c", 9, username="u", password="p", tls=BusTls())
