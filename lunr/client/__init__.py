"""The Python client of lunr, and `lunr`, the command line built on it."""

from lunr.client import errors
from lunr.client.client import Client

__all__ = ["Client", "errors"]
