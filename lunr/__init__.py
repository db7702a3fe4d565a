"""lunr: a block volume service with incremental backups in OpenStack Swift."""


def __getattr__(name: str) -> str:
    """``__version__``, looked up when it is asked for: that takes longer than to start Python."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lunr")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
