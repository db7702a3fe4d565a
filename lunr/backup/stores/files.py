"""A store in a folder: one file an object."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from lunr.backup import errors
from lunr.backup.format.names import Buffer, is_name
from lunr.backup.stores.base import AT_ONCE, Slot, Store
from lunr.common import files
from lunr.common.linux import UncachedWriter, syncfs

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: A file becomes an object when a rename removes this suffix. The unfinished files of a killed
#: writer are listed like objects, so that garbage collection removes them.
_UNFINISHED = ".tmp"


class FileStore(Store):
    """Objects as files under one folder, which is created if it is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._streaming = UncachedWriter()
        with self._errors():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Open from the start: syncfs reports the write errors since then.
            self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = (
                f"{error.strerror}: {error.filename}." if error.filename else f"{error.strerror}."
            )
            if error.errno in _FULL:
                raise errors.StoreFull(store=f"files:{self._folder}", reason=reason) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
                raise errors.StoreRefused(store=f"files:{self._folder}", reason=reason) from error
            raise errors.StoreUnavailable(store=f"files:{self._folder}", reason=reason) from error

    def _path(self, name: str) -> Path:
        """The file of an object.

        Raises:
            errors.BadObjectName: `name` might lead out of the folder.
        """
        if not is_name(name):
            raise errors.BadObjectName(name=name)
        return self._folder / name

    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        """See :meth:`Store.put`."""
        path = self._path(name)
        unfinished = f"{path}.{secrets.token_hex(4)}{_UNFINISHED}"
        with slot, self._errors():
            fd = self._create(path.parent, unfinished)
            try:
                try:
                    self._write(fd, buffers)
                    if durable:
                        os.fsync(fd)
                finally:
                    os.close(fd)
                os.rename(unfinished, path)  # noqa: PTH104 - hot path: no Path is made
            except BaseException:
                with contextlib.suppress(OSError):  # report the first error
                    os.unlink(unfinished)  # noqa: PTH108
                raise
            if durable:
                self._sync_folders(path.parent)

    def _write(self, fd: int, buffers: tuple[Buffer, ...]) -> None:
        pending = [memoryview(buffer).cast("B") for buffer in buffers]
        offset = 0
        while pending:
            written = self._streaming.write(fd, pending[:1024], offset)  # IOV_MAX
            offset += written
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if written:
                pending[0] = pending[0][written:]

    def _create(self, folder: Path, file: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        while True:
            try:
                return os.open(file, flags, 0o600)
            except FileNotFoundError:
                # `delete` may have removed the empty folder meanwhile.
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _sync_folders(self, folder: Path) -> None:
        while True:
            files.fsync(folder)
            if folder == self._folder:
                return
            folder = folder.parent

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        """See :meth:`Store.get`."""
        path = self._path(name)
        with self._errors():
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise errors.ObjectMissing(name=name) from None
            try:
                if length is None:
                    length = max(0, os.fstat(fd).st_size - offset)
                data = os.pread(fd, length, offset)
                while 0 < len(data) < length:
                    more = os.pread(fd, length - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
                return data
            finally:
                os.close(fd)

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`. Folders that become empty are removed, too."""
        path = self._path(name)
        with self._errors():
            try:
                path.unlink(missing_ok=True)
                for folder in path.parents:
                    if folder == self._folder:
                        break
                    folder.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
                    raise

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See :meth:`Store.list`. Files without an object's name are not lunr's."""
        with self._errors():
            for name, size in self._walk(prefix.rpartition("/")[0], prefix):
                if is_name(name):
                    yield name, size

    def _walk(self, folder: str, prefix: str) -> Iterator[tuple[str, int]]:
        try:
            entries = list(os.scandir(self._folder / folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                if name.startswith(prefix) or prefix.startswith(name + "/"):
                    yield from self._walk(name, prefix)
            elif name.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    yield name, entry.stat(follow_symlinks=False).st_size

    def sync(self) -> None:
        """See :meth:`Store.sync`: one barrier for the whole file system."""
        with self._errors():
            syncfs(self._fd)

    def close(self) -> None:
        """See :meth:`Store.close`."""
        os.close(self._fd)


def folders(place: Path) -> list[str]:
    """The names of the folders in `place`, each of which may be a repository.

    Raises:
        errors.StoreRefused: `place` can't be read.
    """
    try:
        return [entry.name for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise errors.StoreRefused(
            store=f"files:{place}", reason=f"{error.strerror}: {error.filename}."
        ) from error
