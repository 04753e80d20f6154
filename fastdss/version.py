"""The version number, which stands only here; pyproject.toml and the public package read it."""

__version__ = "0.2.0"
