"""Sizes: the constants, and their form for people."""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def human(size: float) -> str:
    """`size` bytes for a person, in binary units.

    >>> human(0), human(1536), human(4 * GIB)
    ('0 B', '1.5 KiB', '4.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"
