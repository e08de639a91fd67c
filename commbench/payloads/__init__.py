"""What a message is made of: specs, schemes and buffers."""

from commbench.payloads.schemes import SchemeOptions, contiguous, make_spec
from commbench.payloads.spec import PayloadSpec

__all__ = ["PayloadSpec", "SchemeOptions", "contiguous", "make_spec"]
