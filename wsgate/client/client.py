"""The asyncio client: it reconnects by itself, subscribes again, and reports gaps in its channels.

This module holds the interface for applications. `Connector` keeps the connection and `Channels` keeps the
subscriptions.
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
    """An asyncio client that keeps one connection to a gateway open and reconnects when it is lost.

        async with Client("ws://localhost:8000/ws", token=fetch_token) as client:
            async with client.subscribe("chat:42") as chat:
                async for publication in chat:
                    ...

    A client belongs to the event loop on which it was started. Its callbacks run on that loop.
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
        """Create a client that is not started: it opens no connection before `start` or `connect`.

        Args:
            url: `ws://host:port/ws`, or `wss://`.
            token: The user's token: a text, or a provider that is called for a fresh token before every
                attempt. With a text, the client ends when the gateway reports that the token has expired or
                is not valid. A provider that raises UnauthorizedError ends the client; any other exception of
                a provider is a failed attempt.
            options: See `ClientOptions`.
            on_error: Called with each error that happens in the background. Without it, these errors are
                logged.
            environment: Clock, randomness and the way to connect. Tests replace them.

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
        """The connection state of the client."""
        return self._connector.state

    @property
    def conn(self) -> str | None:
        """The public id of the open connection, or None while the client is not connected."""
        session = self._connector.session
        return session.welcome.conn if session and session.welcome else None

    @property
    def user(self) -> str | None:
        """The user id that the gateway sent in the welcome.

        None for an anonymous client, and while there is no connection.
        """
        session = self._connector.session
        return session.welcome.user if session and session.welcome else None

    # --- connecting and disconnecting -----------------------------------------------------------------

    def start(self) -> None:
        """Start to connect in a background task of the running event loop, without waiting.

        May be called once, and again after `disconnect`.
        """
        self._connector.start()

    async def connect(self) -> None:
        """Start to connect, unless the client is started already, and wait for the first welcome.

        Raises:
            ClosedError: The client has ended.
            NotConnected: `disconnect` was called while this waited.
        """
        await self._connector.restart()
        await self.connected()

    async def connected(self) -> None:
        """Wait until the gateway has welcomed a connection; do not start the client.

        Raises:
            ClosedError: The client has ended before.
            NotConnected: The client was never started, or `disconnect` was called.
        """
        await self._connector.open_session(is_patient=False)

    async def disconnect(self) -> None:
        """Close the connection for now, and keep the subscriptions and their positions for a later `connect`.

        Commands that were sent and have no reply raise Disconnected. Commands that were not sent wait for the
        next connection, within their time limit. Does nothing if there is no connection or if it was called
        before.
        """
        await self._connector.disconnect()

    async def closed(self) -> Ending:
        """Wait until the client has ended for any reason, and return that reason."""
        return await self._connector.closed()

    async def close(self) -> None:
        """End the client: close the connection, end every iterator, and cancel every task.

        May be called twice.
        """
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

    # --- commands and subscriptions -------------------------------------------------------------------

    def subscribe(
        self,
        channel: str,
        *,
        token: TokenSource = None,
        on_gap: Callable[[Gap], object] | None = None,
        since: str | None = None,
    ) -> Subscription:
        """Subscribe to a channel, now and again after every reconnect.

        Args:
            channel: The name of the channel.
            token: A channel token or its provider, for a channel that needs one.
            on_gap: Called as soon as publications are known to be missing. Wait `Gap.retry_ms` before loading
                the state again. After a reconnect it is called for every channel without history. A gap of
                all channels, whose `channel` is None, calls each function once, even if several channels have
                the same function.
            since: The position of the last publication that the application has processed before it was
                restarted.

        Raises:
            CommandError: `already_subscribed`: this client is subscribed to the channel already.
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
        """Receive the publications to the inbox of this user, which the gateway subscribes by itself.

        An anonymous client has no inbox: `ready` and the iterator raise `bad_request`. For the arguments see
        `subscribe`.
        """
        return self.subscribe(INBOX, on_gap=on_gap, since=since)

    async def publish(
        self, channel: str, data: Any, *, key: str | None = None, echo: bool = True
    ) -> str | None:
        """Publish data to a channel: wait for a connection, send once, and wait for the gateway's reply.

        After a CommandTimeout, a Disconnected or a 503 it is unknown whether the data was published: publish
        it again with the same `key`.

        Args:
            channel: The name of the channel. The client need not be subscribed to it.
            data: A value that JSON can represent, or bytes.
            key: An idempotency key: on a channel with history, a second publication with the same key has no
                effect.
            echo: Whether this connection receives the publication too, if it is subscribed to the channel.

        Returns:
            The position of the publication, or None on a channel without history.

        Raises:
            CommandError, CommandTimeout, Disconnected: See `wsgate.client.errors`.
            ClosedError: The client has ended.
            NotConnected: The client was never started.
            TypeError, ValueError, OverflowError: msgpack cannot encode `data`; nothing was sent.
        """
        fields: dict[str, Any] = {"ch": channel, "data": data}
        if key is not None:
            fields["key"] = key
        if not echo:
            fields["echo"] = False
        return (await self._connector.ask("pub", fields)).position

    async def send(self, data: Any) -> None:
        """Send a message to the backend, and return when the bus has stored it as an event.

        Raises the same errors as `publish`.
        """
        await self._connector.ask("send", {"data": data})

    async def refresh(self, token: str | None = None) -> int | None:
        """Replace the token of the open connection with this token, or with a fresh one of the provider.

        A client with a provider does this by itself before the token expires.

        Returns:
            The seconds until the new token expires, or None if it never expires.

        Raises:
            TokenError: No token was given and there is no provider, or the provider failed.
            CommandError: `unauthorized`, or `permission_denied` for a token of another user. The connection
                keeps its old token.
            Others as `publish`.
        """
        if token is None and not self._connector.token.can_renew:
            raise TokenError("there is no token provider")
        return await self._connector.refresh(token)
