"""``pytest -p tests.sanitized``: run the tests on the native module at $COMMBENCH_NATIVE.

It takes the place of the installed ``commbench._native`` before anything imports that.
"""

from __future__ import annotations

import importlib.util
import os
import sys

path = os.environ["COMMBENCH_NATIVE"]
spec = importlib.util.spec_from_file_location("commbench._native", path)
assert spec is not None and spec.loader is not None, path
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["commbench._native"] = module
