"""Decode the messages of clients into commands, and encode the messages to clients. Pure: no I/O, no clock.

A dialect is one wire form of the protocol, such as JSON; one object serves all its connections. Its `variant`
is its index in `DIALECTS` and the reactor's number for publications of this form. A publication is encoded
once for each variant that has subscribers. `commands` defines the commands of clients, the same for every
dialect.
"""

from wsgate.dialects import commands
from wsgate.dialects.commands import BadCommand, Command
from wsgate.dialects.dialect import Dialect
from wsgate.dialects.names import is_channel
from wsgate.dialects.subprotocols import DIALECTS, Selection, select

__all__ = ["DIALECTS", "BadCommand", "Command", "Dialect", "Selection", "commands", "is_channel", "select"]
