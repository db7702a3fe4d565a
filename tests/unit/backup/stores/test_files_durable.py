"""What a store of files has the disk do before it says that an object is safe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.backup.stores import files
from lunr.backup.stores.files import FileStore


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the kernel that matters for a power cut, with the names of the files."""
    calls: list[str] = []

    def note(place: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(place, name)

        def call(subject: Any, *args: Any) -> Any:
            path = Path(f"/proc/self/fd/{subject}").readlink() if name != "rename" else args[0]
            calls.append(f"{name} {Path(path).name}")
            return real(subject, *args)

        monkeypatch.setattr(place, name, call)

    note(os, "fsync")
    note(os, "rename")
    note(files, "syncfs")
    return calls


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    store = FileStore(tmp_path / "store")
    yield store
    store.close()


def test_a_durable_object_is_on_the_disk_before_it_has_its_name(
    store: FileStore, asked: list[str]
) -> None:
    store.put("roots/b", b"x", durable=True)
    unfinished, *rest = asked
    assert unfinished.startswith("fsync b.")
    assert rest == ["rename b", "fsync roots", "fsync store"]


def test_other_objects_are_safe_after_a_sync(store: FileStore, asked: list[str]) -> None:
    store.put("chunks/aa/x", b"x")
    store.delete("chunks/aa/x")
    store.put("chunks/aa/y", b"y")
    assert not [call for call in asked if "sync" in call]
    store.sync()
    assert asked[-1] == "syncfs store"
