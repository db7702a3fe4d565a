"""lunr: a block volume service with incremental backups in OpenStack Swift."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lunr")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
