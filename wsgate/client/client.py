"""A client that stays connected: it comes back by itself, subscribes anew, and says what it cannot prove.

What an application sees. The work is the `Connector`'s and the `Channels`'.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from wsgate.client.callbacks import Callbacks, ErrorCallback
from wsgate.client.close_info import Ending
from wsgate.client.connector import ClientState, Connector
from wsgate.client.environment import Environment
from wsgate.client.errors import ClosedError, TokenError
from wsgate.client.feed import Gap
from wsgate.client.options import ClientOptions
from wsgate.client.protocol import INBOX
from wsgate.client.subscription import Subscription
from wsgate.client.tokens import Token, TokenSource
from wsgate.client.urls import check_url

__all__ = ["Client"]


class Client:
    """Holds one connection to a gateway, for as long as it lives.

        async with Client("ws://localhost:8000/ws", token=fetch_token) as client:
            async with client.subscribe("chat:42") as chat:
                async for publication in chat:
                    ...

    Belongs to the event loop that it was started on. Callbacks run there.
    """

    def __init__(
        self,
        url: str,
        *,
        token: TokenSource = None,
        options: ClientOptions | None = None,
        on_error: ErrorCallback | None = None,
        environment: Environment | None = None,
    ) -> None:
        """Nothing happens before `start`.

        Args:
            url: `ws://host:port/ws`, or `wss://`.
            token: Who this is: a text, or a provider that is asked for a fresh one for every attempt. With a
                text, the client ends when the gateway says that the token has expired or is not valid. A
                provider that raises UnauthorizedError ends the client; whatever else it raises is a failed
                attempt.
            options: See `ClientOptions`.
            on_error: Told what goes wrong in the background; by default the log is.
            environment: For tests.

        Raises:
            SettingsError: No WebSocket can be opened at this URL.
        """
        check_url(url)
        options = options or ClientOptions()
        self._connector = Connector(
            url,
            Token(token, options.token_timeout_s),
            options=options,
            environment=environment or Environment(),
            callbacks=Callbacks(on_error),
        )

    @property
    def state(self) -> ClientState:
        """Where it is on its way."""
        return self._connector.state

    @property
    def conn(self) -> str | None:
        """The public id of the present connection; None while there is none."""
        session = self._connector.session
        return session.welcome.conn if session and session.welcome else None

    @property
    def user(self) -> str | None:
        """Who the gateway says this is; None for who is anonymous, and while there is no connection."""
        session = self._connector.session
        return session.welcome.user if session and session.welcome else None

    # --- coming and going -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, in the background of the running loop; once, and again after `disconnect`."""
        self._connector.start()

    async def connect(self) -> None:
        """Begin to connect, unless the client does already, and wait until there is a connection.

        Raises:
            ClosedError: The client has ended.
            NotConnected: `disconnect` was called meanwhile.
        """
        await self._connector.restart()
        await self.connected()

    async def connected(self) -> None:
        """Wait until there is a connection.

        Raises:
            ClosedError: The client ended before.
            NotConnected: The client was never started, or `disconnect` was called.
        """
        await self._connector.open_session(is_patient=False)

    async def disconnect(self) -> None:
        """Let the connection go for a while, and keep the subscriptions with their positions.

        `connect` or `start` goes on with them. Commands that were sent raise Disconnected; others wait for
        the next connection within their time. Harmless when there is no connection, and twice.
        """
        await self._connector.disconnect()

    async def closed(self) -> Ending:
        """Wait until the client has ended, and say why."""
        return await self._connector.closed()

    async def close(self) -> None:
        """End it: say goodbye to the gateway, end every iterator and every task. Harmless twice."""
        await self._connector.close()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # --- what it does ---------------------------------------------------------------------------------

    def subscribe(
        self,
        channel: str,
        *,
        token: TokenSource = None,
        on_gap: Callable[[Gap], object] | None = None,
        since: str | None = None,
    ) -> Subscription:
        """Listen to a channel, from now on and after every reconnect.

        Args:
            channel: Its name.
            token: A channel token, or who makes one, where the channel needs it.
            on_gap: Called at once when publications are missing; wait `Gap.retry_ms` before loading anew.
                After a reconnect that is always so on a channel without history. A gap of all channels, whose
                `channel` is None, calls a function once, also one that was given for several channels.
            since: The position of the last publication the application has dealt with, from an earlier life.

        Raises:
            CommandError: `already_subscribed`: this client listens to it already.
            ClosedError: The client has ended.
        """
        connector = self._connector
        if connector.state is ClientState.CLOSED:
            raise ClosedError(connector.ending)
        feed = connector.channels.add(channel, token, on_gap=on_gap, since=since)
        return Subscription(feed, connector.channels.leave, lambda: connector.was_started)

    def inbox(
        self, *, on_gap: Callable[[Gap], object] | None = None, since: str | None = None
    ) -> Subscription:
        """Listen to what is published to this user alone; the gateway subscribes to it by itself.

        An anonymous client has none: `ready` and the iterator raise `bad_request`. See `subscribe`.
        """
        return self.subscribe(INBOX, on_gap=on_gap, since=since)

    async def publish(
        self, channel: str, data: Any, *, key: str | None = None, echo: bool = True
    ) -> str | None:
        """Publish to a channel; waits for a connection, and for the gateway to say that it is done.

        It is sent once. After a CommandTimeout, a Disconnected or a 503 it is unknown whether it was
        published: try again with the same `key`.

        Args:
            channel: Where; need not be subscribed to.
            data: What JSON can hold, or bytes.
            key: Makes a retry harmless, on a channel with history.
            echo: Whether this connection gets it too, where it listens to the channel.

        Returns:
            Its position, None on a channel without history.

        Raises:
            CommandError, CommandTimeout, Disconnected: See `wsgate.client.errors`.
            ClosedError: The client has ended.
            NotConnected: The client was never started.
            TypeError, ValueError, OverflowError: `data` cannot be packed; nothing was sent.
        """
        fields: dict[str, Any] = {"ch": channel, "data": data}
        if key is not None:
            fields["key"] = key
        if not echo:
            fields["echo"] = False
        return (await self._connector.ask("pub", fields)).position

    async def send(self, data: Any) -> None:
        """Say something to the backend; returns once its event stream has it. Raises as `publish` does."""
        await self._connector.ask("send", {"data": data})

    async def refresh(self, token: str | None = None) -> int | None:
        """Show the gateway a fresh token: this one, or the provider's.

        With a provider this happens by itself ahead of the token's end.

        Returns:
            How long it lives in s; None: for ever.

        Raises:
            TokenError: There is no provider, or it failed.
            CommandError: `unauthorized`, or `permission_denied` for another user's token; the connection
                goes on with the old one. Else as `publish`.
        """
        if token is None and not self._connector.token.can_renew:
            raise TokenError("there is no token provider")
        return await self._connector.refresh(token)
