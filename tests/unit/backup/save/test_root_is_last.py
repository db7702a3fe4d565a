"""What is true before the root of a backup is written: from then on, it is one."""

from __future__ import annotations

import json

import pytest

from lunr.backup import errors
from lunr.backup.format.names import Buffer
from lunr.backup.stores.base import AT_ONCE, Slot
from lunr.backup.stores.memory import MemoryStore
from tests.unit.backup.support import Faulty, load_bytes, repository, save_bytes

DATA = b"".join(bytes([number + 1]) * 256 for number in range(6))


class Volatile(MemoryStore):
    """A store that a power cut takes everything from that was not synced."""

    def __init__(self) -> None:
        super().__init__()
        self.disk: dict[str, bytes] = {}

    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        super().put(name, *buffers, durable=durable, slot=slot)
        if durable:
            self.disk[name] = self.objects[name]

    def sync(self) -> None:
        self.disk = dict(self.objects)

    def cut_power(self) -> None:
        self.objects = dict(self.disk)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_backup_survives_a_power_cut_as_soon_as_it_is_there(concurrency: int) -> None:
    store = Volatile()
    save_bytes(repository(store), DATA, "b", concurrency=concurrency)
    store.cut_power()
    assert load_bytes(repository(store), "b") == DATA


def test_a_power_cut_before_any_request_leaves_a_whole_backup_or_none() -> None:
    requests = 0

    def count(_call: str, _name: str) -> None:
        nonlocal requests
        requests += 1

    save_bytes(repository(Faulty(MemoryStore(), count)), DATA, "b")
    whole = 0
    for number in range(requests):
        store, left = Volatile(), number

        class PowerCut(BaseException):
            """Nothing of this machine goes on."""

        def cut(_call: str, _name: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise PowerCut

        with pytest.raises(PowerCut):
            save_bytes(repository(Faulty(store, cut)), DATA, "b")
        store.cut_power()
        if "roots/b" in store.objects:
            whole += 1
            assert load_bytes(repository(store), "b") == DATA
    assert 0 < whole < requests


@pytest.mark.parametrize("how", ["ended", "gone"])
def test_a_writer_in_which_a_collector_does_not_believe_any_more_writes_no_root(how: str) -> None:
    store = MemoryStore()

    def end_session(call: str, _name: str) -> None:
        if call == "sync":  # all is stored, the root is next
            (name,) = (name for name in store.objects if name.startswith("sessions/"))
            if how == "gone":
                del store.objects[name]
            else:
                record = json.loads(store.objects[name])
                store.objects[name] = json.dumps({**record, "ended": 1.0}).encode()

    with pytest.raises(errors.SessionLost):
        save_bytes(repository(Faulty(store, end_session)), DATA, "b")
    assert "roots/b" not in store.objects
