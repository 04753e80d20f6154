"""The one place of the version number; pyproject.toml and the public package read it."""

__version__ = "0.2.0"
