"""Send control commands to every shard, by Redis and by the API: disconnect, refresh, revoke."""

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
    assert bus.publish("wsgate:ctl", json.dumps(command)) == 2, "not every shard received the command"


def api(gateway: Gateway, method: str, **fields: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{gateway.admin_url}/api/{method}", json.dumps(fields).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=WITHIN_S) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def test_disconnect_of_a_user_closes_its_connections_on_every_shard_and_no_others(
    gateway: Gateway, bus: Any
) -> None:
    with visit(gateway, "bad") as bad, visit(gateway, "good") as good:
        greeted(bad), greeted(good)
        ask(bus, op="disconnect", user="bad")
        for client in bad:
            said, code = client.end()
            assert code == 4520
            assert said[-1] == {"op": "bye", "code": 4520, "reason": "kicked", "reconnect": False}
        for client in good:
            assert client.ask("ping") == {"op": "pong"}
    wait_until("4 are counted", lambda: gateway.metric("wsgate_closes_total", reason="kicked") >= 4, WITHIN_S)


def test_disconnect_by_connection_id_closes_only_that_connection_of_that_user(
    gateway: Gateway, bus: Any
) -> None:
    with visit(gateway, "two", 2) as clients:
        first, second = greeted(clients)
        ask(bus, op="disconnect", user="someone else", conn=first.welcome["conn"])
        assert first.ask("ping") == {"op": "pong"}, "a connection of another user was closed"
        ask(bus, op="disconnect", conn=first.welcome["conn"])
        assert first.end()[1] == 4520
        assert second.ask("ping") == {"op": "pong"}


def test_refresh_request_closes_the_connection_that_shows_no_new_token_in_time(
    gateway: Gateway, bus: Any
) -> None:
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


def test_refresh_request_does_not_extend_the_expiry_of_a_token(gateway: Gateway, bus: Any) -> None:
    token = gateway.token("short", "--ttl", "2s")
    with connected(gateway.ws_url, 1, token=token) as (client,):
        client.receive()
        ask(bus, op="refresh", user="short", within_s=3600)
        assert client.end(10.0)[1] == 4001


def test_revoked_tokens_are_closed_and_refused_and_later_ones_accepted(gateway: Gateway, bus: Any) -> None:
    old = gateway.token("leaked")
    with connected(gateway.ws_url, 3, token=old) as clients:
        greeted(clients)
        time.sleep(1.1)  # tokens have their issue time in whole seconds
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
def test_malformed_control_command_is_counted_by_each_shard_and_closes_no_client(
    gateway: Gateway, bus: Any, command: bytes
) -> None:
    before = gateway.metric("wsgate_controls_total", outcome="malformed")
    with visit(gateway, "42", 1) as clients:
        (client,) = greeted(clients)
        bus.publish("wsgate:ctl", command)
        wait_until(
            "both shards have counted it",
            lambda: gateway.metric("wsgate_controls_total", outcome="malformed") == before + 2,
            WITHIN_S,
        )
        assert client.ask("ping") == {"op": "pong"}


def test_control_command_on_the_channel_of_a_node_reaches_its_shards(gateway: Gateway, bus: Any) -> None:
    with visit(gateway, "42", 1) as clients:
        (client,) = greeted(clients)
        name = f"wsgate:ctl:{client.welcome['node']}"
        assert bus.publish(name, b'{"op":"disconnect","user":"42"}') == 2
        assert client.end()[1] == 4520


def test_disconnect_without_a_user_or_connection_closes_no_client(gateway: Gateway, bus: Any) -> None:
    with visit(gateway, "42", 1) as clients:
        (client,) = greeted(clients)
        ask(bus, op="disconnect")
        assert client.ask("ping") == {"op": "pong"}


# --- by the API ---------------------------------------------------------------------------------------


def test_api_methods_disconnect_refresh_and_revoke_act_like_control_commands(gateway: Gateway) -> None:
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
def test_api_control_request_with_a_bad_field_is_error_107_that_names_the_field(
    gateway: Gateway, method: str, fields: dict[str, Any], what: str
) -> None:
    assert api(gateway, method, **fields) == {"error": {"code": 107, "message": f"bad request: {what}"}}


# --- shards that were not reached -----------------------------------------------------------------------


def _node(gateway: Gateway) -> str:
    with visit(gateway, "somebody", 1) as clients:
        return str(clients[0].welcome["node"])


@pytest.mark.parametrize("method", ["disconnect", "refresh", "revoke"])
def test_api_control_call_names_a_stopped_shard_and_succeeds_when_repeated(
    gateway: Gateway, method: str
) -> None:
    """The answer is a success only when every shard has replied."""
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
    wait_until("the shard continues", lambda: "result" in api(gateway, method, **fields), WITHIN_S)


def test_api_control_call_names_the_shards_that_have_no_subscriber_connection(
    gateway: Gateway, bus: Any
) -> None:
    """Such shards publish but receive nothing, so their connections were not closed."""
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
    wait_until("it succeeds", lambda: api(gateway, "disconnect", user="deaf") == {"result": {}}, WITHIN_S)


def kill_shards(gateway: Gateway) -> None:
    """Kill both shards and wait until their successors are ready."""
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
def test_revocation_is_loaded_by_shards_that_start_later(gateway: Gateway, bus: Any, is_by_api: bool) -> None:
    user = f"outlives-{is_by_api}"
    token = gateway.token(user)
    before = int(time.time()) + 1
    time.sleep(1.1)  # tokens have their issue time in whole seconds: one of the next second is not revoked
    if is_by_api:
        assert api(gateway, "revoke", user=user, before=before) == {"result": {"before": before}}
    else:
        ask(bus, op="revoke", user=user, before=before)
    wait_until("it is stored", lambda: bus.zscore("wsgate:revoked", user) == before, WITHIN_S)
    kill_shards(gateway)
    # The other shard may still start while the first one refuses.
    known = "every shard has loaded it"
    wait_until(known, lambda: all(_is_refused(gateway, token) for _ in range(6)), WITHIN_S)
    with connected(gateway.ws_url, 1, token=gateway.token(user)) as (client,):
        assert client.receive()["ch"] == "@me", "a token that was issued later was refused"


def _is_refused(gateway: Gateway, token: str) -> bool:
    try:
        with connect(gateway.ws_url, additional_headers={"Authorization": f"Bearer {token}"}):
            return False
    except InvalidStatus as refused:
        assert refused.response.status_code in (401, 503)
        return refused.response.status_code == 401
    except OSError:
        return False


def test_unrevoke_deletes_the_revocation_and_the_token_is_accepted_again(gateway: Gateway, bus: Any) -> None:
    token = gateway.token("forgiven")
    answer = api(gateway, "revoke", user="forgiven", before=int(time.time()) + 5)
    assert answer == {"result": {"before": int(answer["result"]["before"])}}
    wait_until("it is refused", lambda: _is_refused(gateway, token), WITHIN_S)
    assert api(gateway, "unrevoke", user="forgiven") == {"result": {}}
    assert bus.zscore("wsgate:revoked", "forgiven") is None
    for _ in range(4):
        with connected(gateway.ws_url, 1, token=token) as (client,):
            assert client.receive()["ch"] == "@me"


def test_reply_keys_of_a_control_call_expire_within_62_seconds(gateway: Gateway, bus: Any) -> None:
    assert api(gateway, "disconnect", user="nobody-here") == {"result": {}}
    keys = list(bus.scan_iter("wsgate:reply:*"))
    assert keys
    assert all(0 < bus.pttl(key) <= 62_000 for key in keys)


def test_connection_with_a_token_later_than_the_revocation_stays_open_when_shards_load_it(
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
