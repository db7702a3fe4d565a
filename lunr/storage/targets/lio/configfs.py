"""The kernel's configfs: objects are folders, and are made, linked and removed as such.

Documentation/filesystems/configfs.rst. All of it may block until the kernel has
let go of what is removed.
"""

from __future__ import annotations

from pathlib import Path


def read(attribute: Path) -> str:
    """The value of an attribute."""
    return attribute.read_text().strip("\n\0 ")


def write(attribute: Path, value: str) -> None:
    """Give an attribute a value, unless it has it."""
    if read(attribute) != value:
        attribute.write_text(value)


def children(folder: Path, pattern: str = "*") -> list[Path]:
    """The folders in `folder`; none if that is not there."""
    return [path for path in folder.glob(pattern) if path.is_dir() and not path.is_symlink()]


def connect(folder: Path, to: Path) -> None:
    """Make `folder`, and have it linked to the object `to` and to nothing else."""
    folder.mkdir(exist_ok=True)
    links = _links(folder)
    for link in links:
        if link.resolve() == to:
            return
        link.unlink()
    (folder / to.name).symlink_to(to)


def disconnect(folder: Path) -> None:
    """Remove `folder` with its links."""
    for link in _links(folder):
        link.unlink()
    folder.rmdir()


def _links(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_symlink()]
