"""The interface of every store, and the retries around all of them."""

from __future__ import annotations

import logging
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import ClassVar, TypeVar

from lunr.backup import errors
from lunr.backup.format.names import Buffer
from lunr.common.errors import Cancelled

logger = logging.getLogger(__name__)

#: Not that of the process: code that seeds that one expects to use it alone.
_random = random.Random()  # noqa: S311 - no secret

T = TypeVar("T")

#: The longest pause, in seconds, that a store may ask its callers for.
LONGEST_RETRY_AFTER = 300.0

#: Bounds the requests to a store at once.
Slot = AbstractContextManager[object]
AT_ONCE: Slot = nullcontext()


def read_retry_after(value: str) -> float | None:
    """The seconds of an answer's ``Retry-After``; None if they can't be read.

    It is a number of seconds, or a date, which is compared with this machine's clock.

    >>> read_retry_after("7"), read_retry_after("soon"), read_retry_after("-1")
    (7.0, None, None)
    """
    if value.strip().isdecimal() and len(value) < 10:
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        return None
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


class Store(ABC):
    """Objects by name, written whole or not at all. Any thread may call it.

    Every method raises errors.StoreUnavailable for a passing fault, and errors.StoreRefused for
    one that a person must mend.
    """

    #: How many seconds a listing may be behind what :meth:`get` shows.
    lag: ClassVar[float] = 0.0
    #: How many seconds a request whose sender was killed may still take effect.
    settle: ClassVar[float] = 0.0
    #: Whether :meth:`list` gives names in their order.
    in_order: ClassVar[bool] = False

    @abstractmethod
    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        """Write the object `name`, all `buffers` one after the other.

        It survives a power cut after :meth:`sync`, or at once if `durable`. `slot` is held during
        the request, and not for the computation before it.

        Raises:
            errors.StoreFull: there is no room.
        """

    @abstractmethod
    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        """The bytes of an object, or `length` of them from `offset` on (fewer at its end).

        Raises:
            errors.ObjectMissing: there is no object `name`.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object, if it exists."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Name and size of each object whose name begins with `prefix`."""

    @abstractmethod
    def sync(self) -> None:
        """Return when all changes made until now survive a power cut."""

    @abstractmethod
    def close(self) -> None:
        """Close connections and files. The store must not be used any more."""


class Retrying(Store):
    """Another store, with requests repeated after growing pauses when they fail for a while."""

    def __init__(
        self,
        store: Store,
        retries: int,
        cancel: threading.Event | None = None,
        pause: float = 0.5,
    ) -> None:
        """Ask `store` up to ``1 + retries`` times; `cancel` ends a pause with Cancelled."""
        self._store = store
        self._retries = retries
        self._cancel = cancel or threading.Event()
        self._first_pause = pause
        self.lag = store.lag  # type: ignore[misc]
        self.settle = store.settle  # type: ignore[misc]
        self.in_order = store.in_order  # type: ignore[misc]

    def _try(self, what: str, call: Callable[[], T]) -> T:
        for attempt in range(self._retries + 1):
            try:
                return call()
            except errors.StoreUnavailable as error:
                if attempt == self._retries:
                    raise
                self._pause(what, error, attempt)
        raise AssertionError("unreachable")

    def _pause(self, what: str, error: errors.StoreUnavailable, attempt: int) -> None:
        """Wait before the next attempt: longer each time, or as long as the store asked for.

        Raises:
            Cancelled: the caller gave up meanwhile.
        """
        pause = min(30.0, self._first_pause * 2**attempt)
        if error.retry_after is not None:
            # As many callers as were refused come back: not all of them at the same moment.
            pause = min(error.retry_after, LONGEST_RETRY_AFTER) + _random.uniform(0, pause)
        else:
            pause *= _random.uniform(0.75, 1.25)
        logger.warning("%s: %s Trying again in %.1f s.", what, error, pause)
        if self._cancel.wait(pause):
            raise Cancelled from error

    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        """See :meth:`Store.put`."""
        self._try(
            f"put {name}",
            lambda: self._store.put(name, *buffers, durable=durable, slot=slot),
        )

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        """See :meth:`Store.get`."""
        return self._try(f"get {name}", lambda: self._store.get(name, offset, length))

    def delete(self, name: str) -> None:
        """See :meth:`Store.delete`."""
        self._try(f"delete {name}", lambda: self._store.delete(name))

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """See :meth:`Store.list`; the stores themselves fetch page after page.

        A listing that breaks off is repeated, and goes on after the last name that was given.
        Without an order of names that is impossible (remembering all names takes too much
        memory), and the listing fails.
        """
        last = ""
        for attempt in range(self._retries + 1):
            try:
                for name, size in self._store.list(prefix):
                    if name > last or not self.in_order:
                        last = name
                        yield name, size
                return  # noqa: TRY300 - the generator's normal end
            except errors.StoreUnavailable as error:
                if attempt == self._retries or (last and not self.in_order):
                    raise
                self._pause(f"list {prefix}", error, attempt)

    def sync(self) -> None:
        """See :meth:`Store.sync`. Never tried twice: the kernel reports a lost write once."""
        self._store.sync()

    def close(self) -> None:
        """See :meth:`Store.close`."""
        self._store.close()
