"""One process: an event loop, a reactor, a hub, and one table from op to handler."""
