"""Write the pages of docs/reference from the tables in the code: `python -m docs.generate`.

The package stands beside the pages that it writes, so that a reader of a page finds its source. It is not
part of `wsgate`, because an installed gateway needs no documentation, and not a test, because people run it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from docs.generate import codes, configuration, log_events, metrics

__all__ = ["COMMAND", "FOLDER", "PAGES"]

COMMAND: Final = "python -m docs.generate"
FOLDER: Final = Path(__file__).resolve().parents[1] / "reference"
PAGES: Final[dict[str, Callable[[], str]]] = {
    "codes.md": codes.page,
    "configuration.md": configuration.page,
    "log-events.md": log_events.page,
    "metrics.md": metrics.page,
}
"""Name of each page, and the function that returns its text."""
