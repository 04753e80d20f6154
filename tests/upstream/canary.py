"""What the canaries have in common: one wording of what another library changed, and where fastdss leans on it."""

from __future__ import annotations

from importlib.metadata import version


def gone(library: str, name: str, means: str) -> str:
    """The message of a failed canary."""
    return (
        f"{library} {version(library)}: {name} is not what fastdss/upstream/{library}.py takes it for: {means}. "
        "Mend that module, or lower the upper bound in pyproject.toml"
    )
