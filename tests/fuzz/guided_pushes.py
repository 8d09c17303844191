"""The bus reader under libFuzzer: each input is a stream of replies. Run by tests/fuzz/guided.py."""

import importlib.machinery
import importlib.util
import os
import random
import sys

# The instrumented build stands in for the ordinary one, before anything imports that.
NAME = "wsgate.bus.push"
_loader = importlib.machinery.ExtensionFileLoader(NAME, os.environ["GUIDED_EXTENSION"])
_spec = importlib.util.spec_from_loader(NAME, _loader)
assert _spec is not None
_module = importlib.util.module_from_spec(_spec)
_loader.exec_module(_module)
sys.modules[NAME] = _module

from tests.fuzz.pushes import check_pushes  # noqa: E402
from wsgate.bus import push  # noqa: E402

assert push.__file__ == os.environ["GUIDED_EXTENSION"], "the module must be this, or nothing is tested"


def run(data: bytes) -> None:
    """One input; where it is cut depends on it alone, so that a fault comes again."""
    check_pushes(random.Random(len(data)), data)
