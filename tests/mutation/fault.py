"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """``old``, found exactly once in ``file``, becomes ``new``; pytest with ``tests`` must then fail.

    ``survives`` states why no test can tell, where that is so.
    """

    area: str
    file: str
    old: str
    new: str
    tests: str
    survives: str = ""

    @property
    def interpreted(self) -> bool:
        """Whether the tests run kernels in Triton's interpreter, which needs a process of its own."""
        return "tests/interpreted" in self.tests
