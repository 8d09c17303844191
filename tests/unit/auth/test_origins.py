"""Check which origins may connect (S17). The handshake refuses two Origin headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.auth import OriginPolicy
from wsgate.errors import SettingsError

DEFAULT = OriginPolicy(())
LISTED = OriginPolicy(
    ("https://a.example", "http://b.example:8080", "https://[2001:db8::1]", "chrome-extension://abc")
)

SAME_HOST = [
    ("https://a.example", "a.example"),
    ("http://a.example", "a.example"),
    ("https://a.example", "a.example:443"),
    ("https://a.example:443", "a.example"),
    ("http://a.example:80", "a.example"),
    ("http://a.example", "a.example:80"),
    ("http://localhost:8000", "localhost:8000"),
    ("https://a.example:8443", "a.example:8443"),
    ("https://A.Example", "a.example"),
    ("HTTPS://a.example", "A.EXAMPLE"),
    ("https://a.example.", "a.example."),
    ("http://127.0.0.1:8000", "127.0.0.1:8000"),
    ("http://[::1]:8000", "[::1]:8000"),
    ("http://[::1]", "[0:0:0:0:0:0:0:1]:80"),
    ("https://xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("https://under_score.example", "under_score.example"),
]

OTHER_HOST = [
    ("https://evil.example", "a.example"),
    ("https://a.example.evil.example", "a.example"),
    ("https://evila.example", "a.example"),
    ("https://sub.a.example", "a.example"),
    ("https://example", "a.example"),
    ("https://a.example:8443", "a.example"),
    ("https://a.example", "a.example:8443"),
    ("https://a.example", "a.example:80"),
    ("http://a.example", "a.example:443"),
    ("https://a.example:80", "a.example"),
    ("https://a.example.", "a.example"),
    ("https://a.example", "a.example."),
    ("http://localhost", "127.0.0.1"),
    ("http://[::1]", "[::2]"),
    ("http://[::1]", "::1"),
    ("ws://a.example", "a.example"),
    ("wss://a.example", "a.example"),
    ("ftp://a.example", "a.example"),
    ("chrome-extension://a.example", "a.example"),
    ("https://a.example", ""),
    ("https://a.example", "a.example:"),
    ("https://a.example", "a.example:0443"),
    ("https://a.example", "x@a.example"),
    ("https://a.example", "a.example a.example"),
    ("https://k.example", "\u212a.example"),
]

NOT_ORIGINS = [
    "",
    " ",
    "Null",
    "nullx",
    "a.example",
    "//a.example",
    "https:a.example",
    "https:/a.example",
    "https:///a.example",
    "://a.example",
    "https://",
    "https://a.example/",
    "https://a.example/path",
    "https://a.example?",
    "https://a.example#",
    "https://a.example\\",
    "https://user@a.example",
    "https://a.example@evil.example",
    "https://evil.example@a.example",
    "https://:@a.example",
    "https://a.example:",
    "https://a.example:0",
    "https://a.example:0443",
    "https://a.example:65536",
    "https://a.example:443443",
    "https://a.example:+443",
    "https://a.example:443:443",
    "https://a.example:\u0664\u0664\u0663",
    "https://a.example ",
    " https://a.example",
    "https://a.example\n",
    "https://a.example\x00",
    "https://a.example\t",
    "https://a.example,https://a.example",
    "https://a.example https://a.example",
    "https://a..example",
    "https://.a.example",
    "https://a.example..",
    "https://.",
    "https://a%2eexample",
    "https://a.example%00",
    "https://a.example`",
    "https://a!example",
    "https://*.example",
    "https://*",
    "https://\u212a.example",
    "https://b\xfccher.example",
    "https://a\u3002example",
    "https://[::1",
    "https://::1",
    "https://[]",
    "https://[::1]evil.example",
    "https://[::1%25eth0]",
    "https://[::1%eth0]",
    "https://[12345::1]",
    "https://[1:2]",
    "https://[a.example]",
    "https://a.example[::1]",
    "1https://a.example",
    "ht tps://a.example",
    "file:",
    "file:///",
    "app://a.example/",
    "app://user@a.example",
    "app://a.example?",
    "app://a.example#",
    "app://a,app://a",
    "app://a app://a",
    "chrome-extension://*",
    "app://a\x00",
    "app://é",
]


@pytest.mark.parametrize(("origin", "host"), SAME_HOST)
def test_s17_origin_with_the_same_host_and_port_is_allowed(origin: str, host: str) -> None:
    assert DEFAULT.allows(origin, host)


@pytest.mark.parametrize(("origin", "host"), SAME_HOST)
def test_s17_same_host_is_refused_when_that_rule_is_disabled(origin: str, host: str) -> None:
    assert not OriginPolicy((), same_host=False).allows(origin, host)


@pytest.mark.parametrize(("origin", "host"), OTHER_HOST)
def test_s17_another_host_or_port_is_refused(origin: str, host: str) -> None:
    assert not DEFAULT.allows(origin, host)


@pytest.mark.parametrize("origin", NOT_ORIGINS)
@pytest.mark.parametrize("policy", [DEFAULT, LISTED], ids=["default", "listed"])
def test_s17_malformed_origin_is_refused(policy: OriginPolicy, origin: str) -> None:
    assert not policy.allows(origin, "a.example")
    assert not policy.allows(origin, origin.partition("://")[2])


@pytest.mark.parametrize("origin", NOT_ORIGINS)
def test_s17_malformed_origin_in_the_list_raises_settings_error(origin: str) -> None:
    with pytest.raises(SettingsError, match="is not scheme://host"):
        OriginPolicy((origin,))


@pytest.mark.parametrize("policy", [DEFAULT, LISTED, OriginPolicy((), same_host=False)])
def test_s17_request_without_an_origin_is_allowed(policy: OriginPolicy) -> None:
    assert policy.allows(None, "a.example")


def test_s17_null_is_allowed_only_where_listed() -> None:
    assert not DEFAULT.allows("null", "a.example")
    assert not DEFAULT.allows("null", "null")
    assert not LISTED.allows("null", "a.example")
    assert OriginPolicy(("null",)).allows("null", "a.example")
    assert not OriginPolicy(("null",), same_host=False).allows("https://null", "null")


@pytest.mark.parametrize(
    "origin",
    [
        "https://a.example",
        "https://A.EXAMPLE",
        "https://a.example:443",
        "http://b.example:8080",
        "https://[2001:db8:0::1]",
        "chrome-extension://abc",
    ],
)
def test_s17_a_listed_origin_is_allowed_whatever_the_host(origin: str) -> None:
    assert LISTED.allows(origin, "gate.example")


@pytest.mark.parametrize(
    "origin",
    [
        "http://a.example",
        "https://a.example:8443",
        "https://b.example:8080",
        "http://b.example",
        "https://a.example.evil.example",
        "https://xa.example",
        "https://a.example.",
        "https://[2001:db8::2]",
        "chrome-extension://abcd",
        "moz-extension://abc",
    ],
)
def test_s17_origin_similar_to_a_listed_one_is_refused(origin: str) -> None:
    assert not LISTED.allows(origin, "gate.example")


def test_s17_list_of_origins_does_not_disable_the_same_host_rule() -> None:
    assert LISTED.allows("https://gate.example", "gate.example")


@given(st.text(), st.text())
def test_s17_random_texts_raise_no_error_in_the_policy(origin: str, host: str) -> None:
    assert LISTED.allows(origin, host) in (True, False)


@given(st.text(st.sampled_from("a.:/@[]%\\ #?é\n-_1"), max_size=20))
def test_s17_allowed_origin_with_any_text_around_it_is_refused(text: str) -> None:
    policy = OriginPolicy(("https://a.example",), same_host=False)
    for origin in (f"https://a.example{text}", f"https://{text}a.example", f"{text}https://a.example"):
        assert policy.allows(origin, "a.example") is (text == "")


APP_ORIGINS = [
    "file://",
    "app://",
    "app://-",
    "app://obsidian.md",
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
    "safari-web-extension://4A6D2B7C-91F0-4E3A-8B52-0C6F1D9E7A35",
]


@pytest.mark.parametrize("origin", APP_ORIGINS)
def test_s17_the_origin_of_an_app_is_allowed_exactly_as_listed(origin: str) -> None:
    listed = OriginPolicy((origin,))
    assert listed.allows(origin, "a.example")
    assert not DEFAULT.allows(origin, origin.partition("://")[2])
    others = [each for each in APP_ORIGINS if each != origin]
    neighbours = [origin + "x", origin + "/", origin + ".", "x" + origin, origin.swapcase(), "null", "file:"]
    assert not [each for each in others + neighbours if listed.allows(each, "a.example")]


# --- development --------------------------------------------------------------------------------------

DEVELOPMENT = OriginPolicy((), is_dev=True)

PAGES_OF_THIS_MACHINE = [
    f"{scheme}://{host}{port}"
    for scheme in ("http", "https")
    for host in ("localhost", "127.0.0.1", "127.255.0.9", "[::1]", "[0:0:0:0:0:0:0:1]")
    for port in ("", ":1", ":5173", ":65535")
]


@pytest.mark.parametrize("origin", PAGES_OF_THIS_MACHINE)
@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "gate.example"])
def test_page_of_this_machine_is_allowed_in_development(origin: str, host: str) -> None:
    assert DEVELOPMENT.allows(origin, host)
    assert not OriginPolicy((), same_host=False).allows(origin, host)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "file://",
        "http://evil.example:8000",
        "https://evil.example",
        "http://localhost.evil.example:8000",
        "http://127.0.0.1.evil.example:8000",
        "http://evil-localhost:8000",
        "http://localhost.:8000",
        "http://128.0.0.1:8000",
        "http://[::2]:8000",
        "http://2130706433:8000",
        "http://127.1:8000",
        "ws://localhost:8000",
        "app://localhost",
    ],
)
def test_page_of_another_machine_is_refused_in_development(origin: str) -> None:
    """A name that was rebound to this machine has an Origin and a Host that agree."""
    host = origin.partition("://")[2]
    assert not DEVELOPMENT.allows(origin, "localhost:8000")
    allowed = origin in ("http://128.0.0.1:8000", "http://[::2]:8000")  # an address, which cannot be rebound
    assert DEVELOPMENT.allows(origin, host) is allowed
    assert OriginPolicy((origin,), is_dev=True).allows(origin, host)
