"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# A test fails for what it finds; how long an example takes says how busy the machine is.
settings.register_profile("commbench", deadline=None)
settings.load_profile("commbench")
