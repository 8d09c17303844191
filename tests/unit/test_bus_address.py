"""Where the bus is: what a URL names, what is refused, and that the configuration says the same."""

import pytest

from wsgate.bus import BusAddress, Names, parse_address
from wsgate.config import load
from wsgate.errors import SettingsError

TAKEN = [
    ("redis://localhost", BusAddress()),
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
]
REFUSED = [
    ("rediss://u:hunter2@h", "rediss:// is not supported yet"),
    ("redis+sentinel://hunter2/m", "redis+sentinel:// is not supported yet"),
    ("redis+cluster://hunter2", "redis+cluster:// is not supported yet"),
    ("redis://:hunter2@h/1", "only database 0"),
    ("redis://:hunter2@h/hunter2", "only database 0|not a URL"),
    ("redis://:hunter2@h?db=7", "only database 0"),
    ("redis://h?token=hunter2", "only database 0"),
    ("unix:///run/redis.sock?db=2&password=hunter2", "only database 0"),
    ("redis://h:hunter2", "not a URL"),
    ("redis://:hunter2@h:0", "must be redis|not a URL"),
    ("redis://[hunter2", "not a URL"),
    ("unix://hunter2/redis.sock", "must be redis|not a URL"),
    ("unix://", "must be redis|not a URL"),
    ("http://hunter2", "must be redis"),
    ("hunter2", "must be redis"),
]


def configured(url: str) -> str:
    """What the configuration says to a bus URL: nothing when it takes it."""
    try:
        load(None, {}, {"server": {"dev": True}, "bus": {"url": url}})
    except SettingsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("url", "address"), TAKEN)
def test_what_is_taken_is_taken_by_the_configuration_too(url: str, address: BusAddress) -> None:
    assert parse_address(url) == address
    assert configured(url) == ""


@pytest.mark.parametrize(("url", "said"), REFUSED)
def test_what_is_refused_is_refused_by_both_and_not_shown(url: str, said: str) -> None:
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
    ],
)
def test_people_are_shown_neither_user_nor_password(address: BusAddress, shown: str) -> None:
    assert str(address) == shown
    assert "hunter2" not in repr(address)


def test_names_are_the_prefix_and_the_name_as_it_is_s26() -> None:
    names = Names("wsgate")
    assert names.channel(b"a\r\n b*\x00{}") == b"wsgate:ch:a\r\n b*\x00{}"
    assert names.probe("n", 3) == b"wsgate:probe:n:3"
    assert not names.probe("n", 3).startswith(names.channels)
