"""``PayloadSpec``: what one message is made of; copied verbatim into every result."""

from __future__ import annotations

from dataclasses import dataclass

from commbench.errors import UsageError


@dataclass(frozen=True, slots=True)
class PayloadSpec:
    """``sizes``: bytes of each iovec buffer, in wire order (0 is allowed for a single buffer).

    ``seed``: of the content and, for schemes that draw, of the sizes. Raises UsageError for sizes
    that no message can have.
    """

    scheme: str  # "contiguous", "uniform", "random", "skew", "model:NAME", "trace:NAME", others
    sizes: tuple[int, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        least = 1 if len(self.sizes) > 1 else 0
        if not self.sizes or min(self.sizes) < least:
            raise UsageError(
                f"payload {self.scheme}: sizes {self.sizes}: allowed: one buffer of 0 bytes or "
                "more, or several of 1 byte or more"
            )
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"payload {self.scheme}: seed {self.seed}: allowed: 0 to 2^64 - 1")

    @property
    def nbytes(self) -> int:
        """Bytes of one message."""
        return sum(self.sizes)
