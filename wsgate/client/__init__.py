"""Programs that talk to a gateway from outside; they import nothing of the server."""

from wsgate.client.listen import listen

__all__ = ["listen"]
