"""One whole lunr for all rounds."""

from __future__ import annotations

from tests.system.up.conftest import client, lunr, shared

__all__ = ["client", "lunr", "shared"]
