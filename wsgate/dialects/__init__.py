"""Wire forms that clients speak: bytes to commands, events to bytes. Pure: no I/O, no clock.

A dialect is one object for all its connections. Its `variant` is the reactor's number for the form of
publications it takes, its place in `DIALECTS`; a publication is encoded once for each variant that has
subscribers. `commands` says what a client can ask for, whatever it speaks.
"""

from wsgate.dialects import commands
from wsgate.dialects.commands import BadCommand, Command
from wsgate.dialects.dialect import Dialect
from wsgate.dialects.names import is_channel
from wsgate.dialects.subprotocols import DIALECTS, Selection, select

__all__ = ["DIALECTS", "BadCommand", "Command", "Dialect", "Selection", "commands", "is_channel", "select"]
