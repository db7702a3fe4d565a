"""Runs real saves, restores, deletes, collections, sweeps and verifications as a seed decides.

Every actor is a thread with a view of one store of its own. Each request to
the store waits until the scheduler lets it go, so exactly one runs at a time,
and the same seed gives the same run. Time is the scheduler's. Listings lag:
each name is shown as it was at some moment up to `lag` seconds ago. Actors
crash in front of any request, and nothing of them is heard again. Objects rot:
they are changed, cut short or lost.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

from lunr.backup import errors
from lunr.backup.format.names import Buffer
from lunr.backup.repository.repository import Repository
from lunr.backup.repository.sessions import LIFETIME, MARGIN
from lunr.backup.stores.base import AT_ONCE, Slot, Store
from lunr.common.errors import LunrError
from tests.unit.backup.support import KEYS


class Crash(BaseException):
    """The actor is killed."""


class World:
    """The objects, their history, and the time."""

    def __init__(self, seed: int, lag: float) -> None:
        self.random = random.Random(seed)
        self.lag = lag
        #: Which names listings are behind with, by all of the lag; None: by any time, all names.
        self.late: tuple[str, ...] | None = None
        self.now = 1_000_000.0
        self.objects: dict[str, bytes] = {}
        self.history: dict[str, list[tuple[float, int | None]]] = {}
        self.written: dict[str, bytes] = {}
        self.rotten: set[str] = set()
        self.rotted = 0
        self.broken: str | None = None
        self.connect: Callable[[], Store] = lambda: Objects(self)

    def put(self, name: str, data: bytes) -> None:
        kind = name.partition("/")[0]
        if kind in ("chunks", "segments", "patches") and name in self.history:
            # The same again is fine: it mends what has rotted.
            was_deleted = name not in self.objects and name not in self.rotten
            if was_deleted or self.written[name] != data:
                # Whoever asked may take an error for the store's: the scheduler tells it, too.
                self.broken = f"the name {name} was used again"
                raise AssertionError(self.broken)
        self.rotten.discard(name)
        self.written[name] = data
        self.objects[name] = data
        self.history.setdefault(name, []).append((self.now, len(data)))

    def rot(self) -> None:
        """Spoil an object of data."""
        kind = self.random.choice(("chunks/", "chunks/", "patches/", "patches/", "segments/"))
        names = [one for one in self.objects if one.startswith(kind) and one not in self.rotten]
        if not names:
            return
        self.spoil(self.random.choice(names))

    def spoil(self, name: str) -> None:
        """Change the object, cut it short, or lose it."""
        data = bytearray(self.objects[name])
        at = self.random.randrange(len(data))
        self.rotten.add(name)
        self.rotted += 1
        match self.random.choice(("changed", "short", "lost")):
            case "changed":
                data[at] ^= 1 << self.random.randrange(8)
                self.objects[name] = bytes(data)
            case "short":
                self.objects[name] = bytes(data[:at])
                self.history[name].append((self.now, at))
            case _:
                self.delete(name)

    def delete(self, name: str) -> None:
        if self.objects.pop(name, None) is not None:
            self.history[name].append((self.now, None))

    def list(self, prefix: str) -> list[tuple[str, int]]:
        shown = []
        for name, events in self.history.items():
            if name.startswith(prefix):
                behind = self.random.uniform(0, self.lag)
                if self.late is not None:
                    behind = self.lag if name.startswith(self.late) else 0.0
                moment = self.now - behind
                size = next((s for t, s in reversed(events) if t <= moment), None)
                if size is not None:
                    shown.append((name, size))
        self.random.shuffle(shown)
        return shown


class Objects(Store):
    """The world as a store."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.lag = world.lag  # type: ignore[misc]

    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        with slot:
            self._world.put(name, b"".join(buffers))

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        if name not in self._world.objects:
            raise errors.ObjectMissing(name=name)
        data = self._world.objects[name]
        return data[offset:] if length is None else data[offset : offset + length]

    def delete(self, name: str) -> None:
        self._world.delete(name)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        yield from self._world.list(prefix)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class View(Store):
    """A store as one actor reaches it: each request waits until the actor may go on."""

    def __init__(self, store: Store, lag: float, wait: Callable[[str], None]) -> None:
        self._store = store
        self._wait = wait
        self.lag = lag  # type: ignore[misc]

    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        data = b"".join(buffers)
        with slot:
            self._wait(f"put {name}")
            self._store.put(name, data)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        self._wait(f"get {name}")
        return self._store.get(name, offset, length)

    def delete(self, name: str) -> None:
        self._wait(f"delete {name}")
        self._store.delete(name)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        self._wait(f"list {prefix}")
        yield from list(self._store.list(prefix))

    def report(self) -> None:
        """The actor tells the service that it is done, if it lives to do so."""
        self._wait("report")

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class Actor:
    """One call of the engine, in a thread."""

    def __init__(self, world: World, what: str, work: Callable[[Repository], None]) -> None:
        self.what = what
        self.request = "start"
        self.speed = world.random.choice((1, 5, 25))  # the slow meet all the others
        self.waiting_since = world.now
        self.over = False
        self.crashed = False
        self.failure: BaseException | None = None
        self._go = threading.Semaphore(0)
        self._idle = threading.Semaphore(0)
        self._world = world
        self._crash = False
        view = View(world.connect(), world.lag, self.wait)
        repository = Repository(view, KEYS, clock=lambda: world.now)
        self._thread = threading.Thread(target=self._run, args=(work, repository), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Repository], None], repository: Repository) -> None:
        try:
            self.wait("start")
            work(repository)
        except Crash:
            self.crashed = True
        except LunrError as error:
            self.failure = error
        except BaseException as error:
            self.failure = AssertionError(f"{self.what}: {error!r}")
            self.failure.__cause__ = error
        finally:
            self.over = True
            self._idle.release()

    def wait(self, request: str) -> None:
        """Called by the actor's thread before a request: the scheduler decides when it goes on."""
        if self._crash:
            raise Crash
        self.request = request
        self.waiting_since = self._world.now
        self._idle.release()
        self._go.acquire()
        if self._crash:
            raise Crash

    def step(self, crash: bool = False) -> None:
        """Let it make its request, and return when it is before the next or over."""
        self._crash = crash
        self._go.release()
        self._idle.acquire()
        if self.over:
            self._thread.join()

    def begin(self) -> None:
        """Return when it is before its first request."""
        self._idle.acquire()

    @property
    def latest(self) -> float:
        """When its request must have been made.

        Only for a root is there such a time: a request that has been sent must
        not take effect after a collector has stopped believing in its sender.
        """
        if self.request.startswith("put roots/"):
            return self.waiting_since + MARGIN - 1
        return float("inf")


class Scheduler:
    """Lets actors go on, one request at a time."""

    def __init__(self, world: World, crashes: float = 0.002) -> None:
        self.world = world
        self.actors: list[Actor] = []
        self.finished: list[Actor] = []
        self._crashes = crashes

    def start(self, what: str, work: Callable[[Repository], None]) -> Actor:
        actor = Actor(self.world, what, work)
        actor.begin()
        self.actors.append(actor)
        return actor

    def step(self) -> None:
        """One request of one actor, after some time."""
        chance = self.world.random
        pause = chance.choice((0.0, 0.1, 1.0, 10.0))
        if chance.random() < 0.01:
            pause = chance.uniform(0, 3 * LIFETIME)
        (actor,) = chance.choices(self.actors, [one.speed for one in self.actors])
        urgent = min(self.actors, key=lambda one: one.latest)
        if urgent.latest < self.world.now + pause:
            actor, pause = urgent, 0.0
        self.world.now += pause
        # One of a hundred requests is a report: that chance alone would hardly ever meet it.
        crashes = 50 * self._crashes if actor.request == "report" else self._crashes
        self._step(actor, crash=chance.random() < crashes)

    def run_to(self, actor: Actor, request: str = "-") -> None:
        """Let this actor alone go on, until it is before a `request`, or over."""
        while not actor.over and not actor.request.startswith(request):
            self._step(actor)

    def crash(self, actor: Actor) -> None:
        """Kill it in front of its request."""
        self._step(actor, crash=True)

    def _step(self, actor: Actor, crash: bool = False) -> None:
        actor.step(crash)
        if actor.over:
            self.actors.remove(actor)
            self.finished.append(actor)
            if isinstance(actor.failure, AssertionError):
                raise actor.failure
        assert self.world.broken is None, self.world.broken

    def kill_all(self) -> None:
        """End every thread, whatever it is doing."""
        for actor in self.actors:
            while not actor.over:
                actor.step(crash=True)
        self.actors.clear()
