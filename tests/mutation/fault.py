"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """``old``, an expression or statements found once in ``within``, becomes ``new``; ``tests`` must then fail.

    ``within`` is a function or class of ``file`` by its dotted name, the whole file where it is left out. Formatting
    and comments do not matter. ``survives`` states why no test can tell, where that is so.
    """

    area: str
    file: str
    old: str
    new: str
    tests: str
    survives: str = ""
    within: str = ""

    @property
    def interpreted(self) -> bool:
        """Whether the tests run kernels in Triton's interpreter, which needs a process of its own."""
        return "tests/interpreted" in self.tests
