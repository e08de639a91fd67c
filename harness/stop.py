"""The flag that ends every wait, native or Python, in this process."""

from __future__ import annotations

from commbench._native import StopFlag

__all__ = ["StopFlag"]
