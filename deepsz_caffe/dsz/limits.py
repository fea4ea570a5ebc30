"""What reading a file may use."""

from __future__ import annotations

from dataclasses import dataclass

from deepsz_caffe.errors import LimitError


@dataclass(frozen=True)
class Limits:
    """What reading a file may use.

    Parameters
    ----------
    memory
        Bytes that decoding may allocate, the result included. What a file declares is compared
        with it before anything is allocated.
    """

    memory: int = 8 << 30

    def allow_memory(self, needed: int, where: object) -> None:
        """Raise LimitError when `needed` bytes are more than the limit."""
        if needed > self.memory:
            raise LimitError(
                f"decoding takes {needed:,} bytes, the limit is {self.memory:,}", where=where
            )
