"""The version of cantata, as the server reports it."""

from __future__ import annotations

from importlib.metadata import version

VERSION = version("cantata")
