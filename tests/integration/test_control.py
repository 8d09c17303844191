"""What a backend may ask of every shard: kick, fresh tokens, revoke. By Redis, and by the API."""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, Final

import pytest
import redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.client import Client, connected
from tests.support.gateway import Gateway, running_gateway, wait_until

pytestmark = pytest.mark.slow

WITHIN_S: Final = 20.0


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway("--shards", "2") as running:
        yield running


@pytest.fixture
def bus(gateway: Gateway) -> Iterator[Any]:
    with redis.Redis.from_url(gateway.bus_url) as client:
        yield client


def visit(gateway: Gateway, user: str, count: int = 4) -> Any:
    return connected(gateway.ws_url, count, token=gateway.token(user))


def greeted(clients: list[Client]) -> list[Client]:
    for client in clients:
        assert client.receive()["ch"] == "@me"
    return clients


def ask(bus: Any, **command: Any) -> None:
    assert bus.publish("wsgate:ctl", json.dumps(command)) == 2, "each shard hears it"


def api(gateway: Gateway, method: str, **fields: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{gateway.admin_url}/api/{method}", json.dumps(fields).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=WITHIN_S) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def test_a_user_is_kicked_from_every_shard_and_nobody_else_is(gateway: Gateway, bus: Any) -> None:
    with visit(gateway, "bad") as bad, visit(gateway, "good") as good:
        greeted(bad), greeted(good)
        ask(bus, op="disconnect", user="bad")
        for client in bad:
            said, code = client.end()
            assert code == 4520
            assert said[-1] == {"op": "bye", "code": 4520, "reason": "kicked", "reconnect": False}
        for client in good:
            assert client.ask("ping") == {"op": "pong"}
    wait_until("it is counted", lambda: gateway.metric("wsgate_closes_total", reason="kicked") >= 4, WITHIN_S)


def test_one_connection_is_kicked_by_its_public_id(gateway: Gateway, bus: Any) -> None:
    with visit(gateway, "two", 2) as clients:
        first, second = greeted(clients)
        ask(bus, op="disconnect", user="someone else", conn=first.welcome["conn"])
        assert first.ask("ping") == {"op": "pong"}, "it is not theirs"
        ask(bus, op="disconnect", conn=first.welcome["conn"])
        assert first.end()[1] == 4520
        assert second.ask("ping") == {"op": "pong"}


def test_who_shows_a_fresh_token_in_time_stays_and_who_does_not_goes(gateway: Gateway, bus: Any) -> None:
    with visit(gateway, "42", 2) as clients:
        prompt, idle = greeted(clients)
        ask(bus, op="refresh", user="42", within_s=1)
        for client in (prompt, idle):
            assert client.receive() == {"op": "refresh", "within_s": 1}
        assert prompt.ask("refresh", token=gateway.token("42"), id=1)["op"] == "ok"
        said, code = idle.end()
        assert (code, said[-1]["reason"]) == (4001, "token_expired")
        time.sleep(0.5)
        assert prompt.ask("ping") == {"op": "pong"}


def test_a_refresh_never_gives_a_token_more_time_than_it_has(gateway: Gateway, bus: Any) -> None:
    token = gateway.token("short", "--ttl", "2s")
    with connected(gateway.ws_url, 1, token=token) as (client,):
        client.receive()
        ask(bus, op="refresh", user="short", within_s=3600)
        assert client.end(10.0)[1] == 4001


def test_revoked_tokens_open_nothing_any_more_and_newer_ones_do(gateway: Gateway, bus: Any) -> None:
    old = gateway.token("leaked")
    with connected(gateway.ws_url, 3, token=old) as clients:
        greeted(clients)
        time.sleep(1.1)  # tokens say when they were issued in whole seconds
        ask(bus, op="revoke", user="leaked", before=time.time())
        for client in clients:
            assert client.end()[1] == 4001
    for _ in range(4):
        with pytest.raises(InvalidStatus, match="401"):
            connect(gateway.ws_url, additional_headers={"Authorization": f"Bearer {old}"})
    time.sleep(1.1)
    with connected(gateway.ws_url, 1, token=gateway.token("leaked")) as (client,):
        assert client.receive()["ch"] == "@me"


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"nonsense",
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"op":"disconnect","user":7}',
        b'{"op":"disconnect","user":""}',
        b'{"op":"disconnect","conn":"x"}',
        b'{"op":"refresh"}',
        b'{"op":"refresh","user":"42","within_s":-1}',
        b'{"op":"revoke","user":"42"}',
        b'{"op":"format"}',
        b'{"op":"disconnect","user":"' + b"x" * 5_000 + b'"}',
    ],
)
def test_what_is_no_command_is_counted_and_changes_nothing(
    gateway: Gateway, bus: Any, command: bytes
) -> None:
    before = gateway.metric("wsgate_controls_total", outcome="malformed")
    with visit(gateway, "42", 1) as clients:
        (client,) = greeted(clients)
        bus.publish("wsgate:ctl", command)
        wait_until(
            "it is counted",
            lambda: gateway.metric("wsgate_controls_total", outcome="malformed") == before + 2,
            WITHIN_S,
        )
        assert client.ask("ping") == {"op": "pong"}


def test_a_command_for_one_node_is_heard_by_its_shards(gateway: Gateway, bus: Any) -> None:
    with visit(gateway, "42", 1) as clients:
        (client,) = greeted(clients)
        name = f"wsgate:ctl:{client.welcome['node']}"
        assert bus.publish(name, b'{"op":"disconnect","user":"42"}') == 2
        assert client.end()[1] == 4520


def test_a_disconnect_without_anybody_named_disconnects_nobody(gateway: Gateway, bus: Any) -> None:
    with visit(gateway, "42", 1) as clients:
        (client,) = greeted(clients)
        ask(bus, op="disconnect")
        assert client.ask("ping") == {"op": "pong"}


# --- by the API ---------------------------------------------------------------------------------------


def test_the_api_says_the_same(gateway: Gateway) -> None:
    with visit(gateway, "api", 3) as clients:
        first, second, third = greeted(clients)
        assert api(gateway, "disconnect", conn=first.welcome["conn"]) == {"result": {}}
        assert first.end()[1] == 4520
        assert api(gateway, "refresh", user="api", within_s=9) == {"result": {}}
        assert second.receive() == {"op": "refresh", "within_s": 9}
        assert api(gateway, "disconnect", user="api") == {"result": {}}
        assert second.end()[1] == third.end()[1] == 4520
        assert api(gateway, "revoke", user="api", before=0) == {"result": {"before": 0.0}}


@pytest.mark.parametrize(
    ("method", "fields", "what"),
    [
        ("disconnect", {}, "user"),
        ("disconnect", {"user": 7}, "user"),
        ("disconnect", {"user": "x" * 129}, "user"),
        ("disconnect", {"conn": "xyz"}, "conn"),
        ("disconnect", {"conn": 7}, "user"),
        ("refresh", {}, "user"),
        ("refresh", {"user": "42", "within_s": "soon"}, "within_s"),
        ("refresh", {"user": "42", "within_s": 3601}, "within_s"),
        ("refresh", {"user": "42", "within_s": 1.5}, "within_s"),
        ("revoke", {"user": "42", "before": -1}, "before"),
        ("revoke", {"user": "a\nb"}, "user"),
    ],
)
def test_a_bad_request_is_named(gateway: Gateway, method: str, fields: dict[str, Any], what: str) -> None:
    assert api(gateway, method, **fields) == {"error": {"code": 107, "message": f"bad request: {what}"}}


# --- who was reached ------------------------------------------------------------------------------------


def _node(gateway: Gateway) -> str:
    with visit(gateway, "somebody", 1) as clients:
        return str(clients[0].welcome["node"])


@pytest.mark.parametrize("method", ["disconnect", "refresh", "revoke"])
def test_a_stopped_shard_is_named_and_repeating_the_call_is_harmless(gateway: Gateway, method: str) -> None:
    """A call is answered as done only when every shard has said so."""
    node, stopped = _node(gateway), gateway.pid_of("wsgate-shard-1")
    fields = {"user": f"stopped-{method}"} | ({"before": 1} if method == "revoke" else {})
    os.kill(stopped, signal.SIGSTOP)
    try:
        answer = api(gateway, method, **fields)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert answer["shards"] == [f"{node}/1"]
    assert f"{node}/1" in answer["error"]["message"]
    assert answer["error"]["code"] == 100
    wait_until("it goes on", lambda: "result" in api(gateway, method, **fields), WITHIN_S)


def test_a_shard_without_its_subscriber_is_named(gateway: Gateway, bus: Any) -> None:
    """It holds connections and publishes, but hears nobody: its connections were not disconnected."""
    node = _node(gateway)
    bus.execute_command("ACL", "SETUSER", "default", "resetchannels")
    bus.client_kill_filter(_type="pubsub")
    try:
        answer = api(gateway, "disconnect", user="deaf")
    finally:
        bus.execute_command("ACL", "SETUSER", "default", "allchannels")
    shards = [f"{node}/0", f"{node}/1"]
    assert answer.get("shards", shards) == shards
    assert answer["error"]["code"] == 100
    wait_until("it is back", lambda: api(gateway, "disconnect", user="deaf") == {"result": {}}, WITHIN_S)


def kill_shards(gateway: Gateway) -> None:
    """Kill both shards and wait until their successors are ready, not until the node has not noticed yet."""
    killed = {gateway.pid_of(f"wsgate-shard-{number}") for number in (0, 1)}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)

    def are_replaced() -> bool:
        children = gateway.children()
        pids = [pid for name in ("wsgate-shard-0", "wsgate-shard-1") for pid in children.get(name, [])]
        return len(pids) == 2 and not killed & set(pids)

    wait_until("the shards are replaced", are_replaced, WITHIN_S)
    gateway.await_ready()


@pytest.mark.parametrize("is_by_api", [True, False])
def test_a_revocation_holds_for_a_shard_that_is_started_later(
    gateway: Gateway, bus: Any, is_by_api: bool
) -> None:
    user = f"outlives-{is_by_api}"
    token = gateway.token(user)
    before = int(time.time()) + 1
    time.sleep(1.1)  # tokens are dated in whole seconds: one of the next second is not revoked
    if is_by_api:
        assert api(gateway, "revoke", user=user, before=before) == {"result": {"before": before}}
    else:
        ask(bus, op="revoke", user=user, before=before)
    wait_until("it is kept", lambda: bus.zscore("wsgate:revoked", user) == before, WITHIN_S)
    kill_shards(gateway)
    # The other shard may still start while the first one refuses.
    known = "every shard knows it again"
    wait_until(known, lambda: all(_is_refused(gateway, token) for _ in range(6)), WITHIN_S)
    with connected(gateway.ws_url, 1, token=gateway.token(user)) as (client,):
        assert client.receive()["ch"] == "@me", "a token that was issued later is good"


def _is_refused(gateway: Gateway, token: str) -> bool:
    try:
        with connect(gateway.ws_url, additional_headers={"Authorization": f"Bearer {token}"}):
            return False
    except InvalidStatus as refused:
        assert refused.response.status_code in (401, 503)
        return refused.response.status_code == 401
    except OSError:
        return False


def test_a_revocation_can_be_taken_back(gateway: Gateway, bus: Any) -> None:
    token = gateway.token("forgiven")
    answer = api(gateway, "revoke", user="forgiven", before=int(time.time()) + 5)
    assert answer == {"result": {"before": int(answer["result"]["before"])}}
    wait_until("it is refused", lambda: _is_refused(gateway, token), WITHIN_S)
    assert api(gateway, "unrevoke", user="forgiven") == {"result": {}}
    assert bus.zscore("wsgate:revoked", "forgiven") is None
    for _ in range(4):
        with connected(gateway.ws_url, 1, token=token) as (client,):
            assert client.receive()["ch"] == "@me"


def test_replies_of_shards_are_kept_for_a_minute(gateway: Gateway, bus: Any) -> None:
    assert api(gateway, "disconnect", user="nobody-here") == {"result": {}}
    keys = list(bus.scan_iter("wsgate:reply:*"))
    assert keys
    assert all(0 < bus.pttl(key) <= 62_000 for key in keys)


def test_a_connection_with_a_later_token_outlives_the_reading_of_a_revocation(
    gateway: Gateway, bus: Any
) -> None:
    assert "result" in api(gateway, "revoke", user="renewed", before=int(time.time()) - 5)
    kill_shards(gateway)
    with connected(gateway.ws_url, 2, token=gateway.token("renewed")) as clients:
        greeted(list(clients))
        for _ in range(30):
            for client in clients:
                assert client.ask("ping") == {"op": "pong"}
            time.sleep(0.1)
