"""One whole lunr for the rounds of a test."""

from __future__ import annotations

from tests.system.up.conftest import client, lunr, root

__all__ = ["client", "lunr", "root"]
