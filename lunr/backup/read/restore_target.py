"""The file or block device that a backup is restored to."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from lunr.backup import errors
from lunr.backup.format.names import Buffer
from lunr.common.linux import UncachedWriter, punch_hole

_STEP = 4 << 20
_ZEROS = bytes(_STEP)


class FileTarget:
    """A file or block device, open for writing.

    Attributes:
        size: its bytes.
    """

    def __init__(self, path: Path, needed: int, create: bool = False) -> None:
        """Open `path`, which must have room for `needed` bytes.

        `create` makes a sparse file of that size if `path` does not exist; :meth:`abandon`
        removes it.

        Raises:
            errors.TargetError: it can't be opened.
            errors.TargetTooSmall: it is smaller than `needed`.
        """
        self._path = path
        self._created = False
        self._streaming = UncachedWriter()
        try:
            flags = os.O_RDWR | os.O_CLOEXEC
            try:
                self._fd = os.open(path, flags)
            except FileNotFoundError:
                if not create:
                    raise
                self._fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
                self._created = True
                os.ftruncate(self._fd, needed)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
            self._punch = stat.S_ISREG(os.fstat(self._fd).st_mode) or stat.S_ISBLK(
                os.fstat(self._fd).st_mode
            )
        except OSError as error:
            raise errors.TargetError(path=path, offset=0, reason=f"{error.strerror}.") from error
        if self.size < needed:
            self.close()
            raise errors.TargetTooSmall(path=path, size=self.size, needed=needed)

    @property
    def is_new(self) -> bool:
        """Whether it was created here, and so reads as zeros."""
        return self._created

    def write(self, data: Buffer, offset: int) -> None:
        """Write `data` at `offset`; any thread may.

        Raises:
            errors.TargetError: it names the offset.
        """
        view = memoryview(data)
        try:
            while view:
                count = self._streaming.write(self._fd, [view], offset)
                view = view[count:]
                offset += count
        except OSError as error:
            raise errors.TargetError(
                path=self._path, offset=offset, reason=f"{error.strerror}."
            ) from error

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, by a hole if possible.

        Raises:
            errors.TargetError: it names the offset.
        """
        if self._punch:
            try:
                punch_hole(self._fd, offset, length)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
                    raise errors.TargetError(
                        path=self._path, offset=offset, reason=f"{error.strerror}."
                    ) from error
                self._punch = False
            else:
                return
        for start in range(0, length, _STEP):
            self.write(memoryview(_ZEROS)[: min(_STEP, length - start)], offset + start)

    def sync(self) -> None:
        """Return when all that was written survives a power cut."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise errors.TargetError(
                path=self._path, offset=0, reason=f"{error.strerror}."
            ) from error

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def abandon(self) -> None:
        """Close it, and remove the file if it was made here."""
        self.close()
        if self._created:
            self._path.unlink(missing_ok=True)
