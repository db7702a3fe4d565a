"""Writer sessions: the writers of a repository, for which a sweep must wait.

A writer registers a session before it reads anything. Then it reads the lists of pending
deletions and never refers to a name in them. Its session names the lists that it has read.
A list may be swept when every writer that might not know it is over: see
lunr/backup/repository/collect.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lunr.backup import errors
from lunr.backup.format.names import TOKEN_SIZE, VERSION, Kind, session_name
from lunr.backup.repository.repository import Repository
from lunr.common import ids, strict_json
from lunr.common.errors import LunrError

logger = logging.getLogger(__name__)

#: Seconds after which a session expires unless it is refreshed. A writer whose session has
#: expired gives up.
LIFETIME = 600.0
REFRESH = 120.0
#: Seconds after its expiry until others take it for over: more than clocks differ, and longer
#: than all attempts to write the root, which begin before the expiry.
MARGIN = 600.0


@dataclass(frozen=True)
class Session:
    """The object of a writer session in the store. Times are seconds since the epoch.

    Attributes:
        backup_id: the backup that it writes.
        expires: when it is over unless refreshed.
        knows: the collections whose listed names it avoids.
        owner: the process: on the same machine its death is seen at once.
        ended: when it was over, or None.
    """

    backup_id: str
    expires: float
    knows: tuple[str, ...]
    owner: dict[str, Any]
    ended: float | None = None

    def encode(self) -> bytes:
        """The session object."""
        return json.dumps({"format": VERSION, **asdict(self)}).encode()

    def over(self, now: float, settle: float) -> float | None:
        """Since when this writer can write nothing any more; None: it still can."""
        if self.ended is not None:
            return self.ended
        if now > self.expires + MARGIN:
            return self.expires + MARGIN
        refreshed = self.expires - LIFETIME
        if now > refreshed + settle and _is_dead(self.owner):
            return now
        return None


def decode(raw: bytes, name: str) -> Session:
    """The session in `raw`.

    Raises:
        errors.CorruptObject, errors.UnsupportedFormat: it can't be understood.
    """
    try:
        record = strict_json.load_object(raw)
        if record.pop("format") != VERSION:
            raise errors.UnsupportedFormat(name=name, reason="a session of another version.")
        _check(record)
        session = Session(**record)
    except (ValueError, TypeError, KeyError) as error:
        raise errors.CorruptObject(name=name, reason="it is not the JSON of a session.") from error
    return replace(session, knows=tuple(session.knows))


def _check(record: Mapping[str, Any]) -> None:
    """See that the fields of a session have their types.

    Raises:
        ValueError: one has not.
    """
    if not (
        ids.is_valid(record["backup_id"])
        and strict_json.is_number(record["expires"])
        and isinstance(record["knows"], list)
        and all(map(ids.is_valid, record["knows"]))
        and isinstance(record["owner"], dict)
        and (record.get("ended") is None or strict_json.is_number(record["ended"]))
    ):
        raise ValueError("a field is of another type")


def tokens(repository: Repository) -> Iterator[bytes]:
    """The tokens of the sessions that the store lists."""
    for name, _ in repository.store.list(f"{Kind.SESSION}/"):
        with contextlib.suppress(ValueError):  # an unfinished file of a killed writer
            yield bytes.fromhex(name.partition("/")[2])


def load_all(repository: Repository) -> Iterator[tuple[bytes, Session]]:
    """Token and content of every session that the store lists."""
    for token in tokens(repository):
        name = session_name(token)
        try:
            raw = bytes(repository.store.get(name))
        except errors.ObjectMissing:
            continue  # gone meanwhile
        yield token, decode(raw, name)


class Writer:
    """A writer session of this process.

    Attributes:
        token: part of the name of every object that it writes.
    """

    def __init__(self, repository: Repository, backup_id: str) -> None:
        self._repository = repository
        self._name = ""
        self.token = secrets.token_bytes(TOKEN_SIZE)
        self._name = session_name(self.token)
        self._session = Session(backup_id, 0.0, (), _owner())
        self._good_until = 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> Writer:
        self._put()
        threading.Thread(target=self._refresh, daemon=True, name="session").start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave a note that the session is over; collectors remove it."""
        self._over.set()
        with self._lock, contextlib.suppress(LunrError):
            # If the note does not arrive, the session expires.
            ended = replace(self._session, ended=self._repository.clock())
            self._repository.store.put(self._name, ended.encode(), durable=True)

    def _put(self, knows: Iterable[str] | None = None) -> None:
        with self._lock:
            good_until = _boottime() + LIFETIME
            self._session = replace(
                self._session,
                expires=self._repository.clock() + LIFETIME,
                knows=self._session.knows if knows is None else tuple(knows),
            )
            self._repository.store.put(self._name, self._session.encode(), durable=True)
            self._good_until = good_until

    def declare(self, collections: Iterable[str]) -> None:
        """Promise in the session to refer to no name listed by `collections`."""
        self.check()
        self._put(collections)

    def renew(self) -> None:
        """Begin a new lifetime now.

        Raises:
            errors.SessionLost: see :meth:`check`.
        """
        self.check()
        self._put()
        if self._is_late():  # the request itself took too long: a sweep may have gone on
            raise errors.SessionLost

    def _refresh(self) -> None:
        while not self._over.wait(REFRESH):
            try:
                self.renew()
            except errors.SessionLost:
                return
            except LunrError as error:  # tried again; `check` raises when it is too late
                logger.warning("The session could not be refreshed: %s", error)

    def check(self) -> None:
        """Make sure that no collector takes this writer for dead.

        Raises:
            errors.SessionLost: a collector may; the writer must commit nothing any more.
        """
        if self._is_late():
            raise errors.SessionLost
        try:
            shown = decode(bytes(self._repository.store.get(self._name)), self._name)
        except errors.ObjectMissing:
            raise errors.SessionLost from None
        if shown.ended is not None:  # a collector has ended it
            raise errors.SessionLost

    def _is_late(self) -> bool:
        return self._repository.clock() > self._session.expires or _boottime() > self._good_until


def _boottime() -> float:
    # This clock goes on while the machine is suspended, and can't be set.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _owner() -> dict[str, Any]:
    """This process, as others on this machine and in this PID namespace can identify it."""
    return {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "namespace": os.readlink("/proc/self/ns/pid"),  # noqa: PTH115 - not a path
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _started(pid: int) -> str | None:
    """When a process began (clock ticks since boot); None if it is a zombie or does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_dead(owner: dict[str, Any]) -> bool:
    here = _owner()
    if owner.get("boot") != here["boot"] or owner.get("namespace") != here["namespace"]:
        return False
    pid = owner.get("pid")
    return type(pid) is not int or _started(pid) != owner.get("started")
