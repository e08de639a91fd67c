"""``pytest -p tests.sanitized``: run the tests on the native modules in $COMMBENCH_BUILD.

They take the place of the installed ones before anything imports those.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

for path in sorted(Path(os.environ["COMMBENCH_BUILD"]).rglob("_*.so")):
    name = f"commbench.{path.name.partition('.')[0]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
assert "commbench._native" in sys.modules
