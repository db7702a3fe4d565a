"""Master keys, where they are kept, and what a change of them does to backups."""

from __future__ import annotations

from pathlib import Path

import pytest

from lunr.backup import errors
from lunr.backup.keys import derive, master_keys
from lunr.backup.keys.derive import Cipher
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.repository import Repository
from lunr.backup.repository.verify import verify
from lunr.backup.stores.base import Store
from lunr.backup.stores.memory import MemoryStore
from tests.unit.backup.support import load_bytes, save_bytes

OLD, NEW = b"\xab" * 32, b"\xcd" * 32
DATA = b"".join(bytes([n]) * 64 for n in range(40))


def nobody(_: str) -> bytes:
    raise AssertionError("Barbican was asked")


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("ab" * 32 + "\n")
    path.chmod(0o644)
    with pytest.raises(errors.BadKey, match="chmod 600"):
        master_keys.load(path)
    path.chmod(0o600)
    assert master_keys.load(path) == (OLD,)
    path.write_text(master_keys.text((NEW, OLD)) + "\n")
    assert master_keys.open_master_keys(f"file:{path}", nobody) == (NEW, OLD)


@pytest.mark.parametrize("text", ["", "ab" * 31, "xy" * 32, "ab" * 33, "é" * 64, "ab" * 32 + "\nx"])
def test_what_is_no_key_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(errors.BadKey, match="64 hexadecimal digits") as caught:
        master_keys.load(path)
    assert "abab" not in str(caught.value)


def test_a_key_that_is_there_twice_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.BadKey, match="twice"):
        master_keys.parse(["ab" * 32, "cd" * 32, "ab" * 32], "it")
    with pytest.raises(errors.BadKey, match="No such file"):
        master_keys.load(tmp_path / "none")


def test_secrets_are_asked_for_by_id() -> None:
    secrets = {"one": NEW, "two": master_keys.text((OLD, bytes(32))).encode()}
    assert master_keys.open_master_keys("barbican:one", secrets.__getitem__) == (NEW,)
    assert master_keys.open_master_keys("barbican:one,two", secrets.__getitem__) == (
        NEW,
        OLD,
        bytes(32),
    )
    with pytest.raises(errors.BadKey, match="secret one"):
        master_keys.open_master_keys("barbican:one", lambda _: b"password")


@pytest.mark.parametrize(
    "source", ["", "/etc/key", "file:key", "barbican:", "barbican:a,../b", "vault:x"]
)
def test_what_is_no_place_for_keys_is_told(source: str) -> None:
    with pytest.raises(errors.BadKey, match="use file:/PATH or barbican:SECRET_ID"):
        master_keys.open_master_keys(source, nobody)


def test_a_master_key_has_a_name_that_does_not_tell_it() -> None:
    assert derive.master_id(OLD) == derive.master_id(OLD) != derive.master_id(NEW)
    assert derive.master_id(OLD) not in OLD.hex()
    assert derive.master_id(OLD) != derive.derive(OLD, "account").id


# --- a change of keys --------------------------------------------------------------


def repository(store: Store, *found: bytes, writes: Cipher = Cipher.AES_256_GCM) -> Repository:
    own, *older = master_keys.keyring(found, "account", writes)
    return Repository(store, own, older=older)


def test_backups_of_all_keys_are_read_and_the_newest_writes() -> None:
    store = MemoryStore()
    save_bytes(repository(store, OLD), DATA, "b1")
    both = repository(store, NEW, OLD)
    root = save_bytes(both, DATA, "b2", "b1")
    assert root.parent_id is None  # of no use
    assert root.statistics.objects_stored > 2  # the save was full
    again = save_bytes(both, DATA, "b3", "b2")
    assert again.parent_id == "b2"
    assert again.statistics.objects_stored == 0
    for backup in ("b1", "b2", "b3"):
        assert load_bytes(both.of(both.load_root(backup)), backup) == DATA
    assert verify(both).damaged == {}
    assert {both.load_root(b).key_id for b in ("b2", "b3")} == {derive.derive(NEW, "account").id}


def test_garbage_is_collected_under_all_keys() -> None:
    store = MemoryStore()
    save_bytes(repository(store, OLD), DATA, "b1")
    save_bytes(repository(store, OLD), DATA[::-1], "b2")
    both = repository(store, NEW, OLD)
    save_bytes(both, DATA, "b3")
    save_bytes(both, DATA[::-1], "b4")
    for gone in ("b1", "b3"):
        both.delete_root(gone)
    found = collect(both)
    assert found.collection is not None
    assert sweep(both, found.collection).deleted == found.condemned > 0
    assert collect(both).condemned == 0
    for backup in ("b2", "b4"):
        assert load_bytes(both.of(both.load_root(backup)), backup) == DATA[::-1]


def test_without_its_key_a_backup_can_neither_be_read_nor_collected() -> None:
    store = MemoryStore()
    save_bytes(repository(store, OLD), DATA, "b1")
    new = repository(store, NEW)
    with pytest.raises(errors.WrongKey, match="another master key"):
        new.load_root("b1")
    save_bytes(new, DATA, "b2", "b1")
    new.delete_root("b2")
    before = dict(store.objects)
    with pytest.raises(errors.WrongKey):
        collect(new)
    assert {name for name in before if name.startswith("chunks/")} <= set(store.objects)


def test_encryption_can_be_turned_on_and_off() -> None:
    store = MemoryStore()
    plain, secret = (repository(store, OLD, writes=writes) for writes in Cipher)
    save_bytes(plain, DATA, "b1")
    changed = b"new!" * 16 + DATA[64:]
    root = save_bytes(secret, changed, "b2", "b1")
    assert root.parent_id == "b1"
    assert root.statistics.objects_stored < 10  # what is there is used
    for reader in (plain, secret):
        assert load_bytes(reader, "b1") == DATA
        assert load_bytes(reader, "b2") == changed


def test_a_stolen_store_shows_nothing_of_a_volume() -> None:
    store = MemoryStore()
    pattern = b"A secret of the tenant, that is told again and again. "
    data = (pattern * 100)[:4000]
    save_bytes(repository(store, OLD), data, "b1")
    everything = b"".join(store.objects.values())
    windows = {data[at : at + 8] for at in range(len(data) - 8)}
    assert not any(window in everything for window in windows)
    save_bytes(repository(store, OLD, writes=Cipher.NONE), data, "b2")
    assert pattern in b"".join(store.objects.values())  # the search finds it if it is there
