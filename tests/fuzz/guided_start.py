"""Run the Python side of a guided fuzzer: `run` checks one input. tests/fuzz/guided.py starts it.

The instrumented modules replace the ordinary ones. They must be found before any import of an ordinary one,
so this module installs its finder first and imports the readers after it.
"""

import importlib.machinery
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

MODULES = Path(os.environ["GUIDED_MODULES"])


class _Finder:
    """Find the instrumented build of a module, where there is one."""

    @staticmethod
    def find_spec(
        name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        file = MODULES / f"{name}.so"
        if not file.exists():
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, str(file))
        return importlib.util.spec_from_file_location(name, file, loader=loader)


sys.meta_path.insert(0, _Finder)
warnings.simplefilter("ignore")

from tests.fuzz.guided_readers import READERS  # noqa: E402

for _file in MODULES.glob("*.so"):
    _module = importlib.import_module(_file.stem)
    assert _module.__file__ == str(_file), f"{_file.stem} must be the instrumented one, or nothing is tested"

run = READERS[os.environ["GUIDED_READER"]].start()
