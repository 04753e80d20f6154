"""What the canaries have in common: one wording of what another library changed, and where fastdss leans on it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version


def gone(library: str, name: str, means: str) -> str:
    """The message of a failed canary."""
    ours = library in sys.stdlib_module_names
    which = f"{library} of Python {platform.python_version()}" if ours else f"{library} {version(library)}"
    way = "Mend that module" if ours else "Mend that module, or lower the upper bound in pyproject.toml"
    return f"{which}: {name} is not what fastdss/upstream/{library}.py takes it for: {means}. {way}"
