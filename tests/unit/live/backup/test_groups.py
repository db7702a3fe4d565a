"""The ids of groups, and what ties the backups of one."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest

from lunr.backup.keys import derive
from lunr.backup.repository.repository import Repository
from lunr.backup.save.save import Backup, save
from lunr.backup.stores.memory import MemoryStore
from lunr.live import errors
from lunr.live.backup import groups
from lunr.live.backup.groups import Group, Member
from lunr.live.qemu.hardware import Device, Hardware

MOMENT = datetime(2026, 11, 23, 20, 24, 11, 123456, tzinfo=UTC)


class Zeros:
    size = 4096

    def data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        yield start, end

    def read(self, buffer: mmap.mmap, offset: int, length: int) -> memoryview:
        return memoryview(buffer)[:length]


@pytest.fixture
def repository() -> Repository:
    return Repository(MemoryStore(), derive.derive(derive.PUBLIC_MASTER, "default"))


def made(repository: Repository, machine: str, *disks: str, moment: datetime = MOMENT) -> Group:
    group_id = groups.new_id(machine, moment)
    created_at = moment.isoformat()
    members = []
    for disk in disks:
        backup_id = groups.backup_id(group_id, disk)
        backup = Backup(backup_id, machine, created_at, consistency_group=group_id)
        save(repository, Zeros(), backup, concurrency=1)
        members.append(Member(disk, backup_id, 4096, "full", "", None, 4096, 0, 0.1))
    return Group(group_id, machine, created_at, 0.002, None, tuple(members))


def test_ids() -> None:
    assert groups.new_id("web-1", MOMENT) == "web-1-20261123T202411123456Z"
    with pytest.raises(errors.CannotBackUp, match="shorter name"):
        groups.new_id("x" * 60, MOMENT)
    with pytest.raises(errors.CannotBackUp, match="shorter name"):
        groups.backup_id(groups.new_id("x" * 30, MOMENT), "y" * 30)


def test_a_group_is_there_when_all_of_it_is(repository: Repository) -> None:
    group = made(repository, "web", "a", "Z-1")
    assert groups.listed(repository) == []
    members = [member.backup_id for member in group.members]
    assert groups.unfinished(repository) == {group.group_id: sorted(members)}
    with pytest.raises(errors.GroupMissing):
        groups.load(repository, group.group_id)
    groups.store(repository, group)
    assert groups.load(repository, group.group_id) == group
    assert groups.listed(repository, "web") == [group]
    assert groups.listed(repository, "other") == []
    assert groups.unfinished(repository) == {}
    repository.delete_root(members[0])
    assert groups.listed(repository) == []
    with pytest.raises(errors.GroupMissing):
        groups.load(repository, group.group_id)
    groups.delete(repository, group.group_id)
    assert list(repository.backup_ids()) == []


def test_a_group_of_many_disks_is_read_back(repository: Repository) -> None:
    group = made(repository, "big", "a")
    many = replace(group, members=group.members * 5000)  # more than a block, less than a chunk
    groups.store(repository, many)
    assert groups.load(repository, group.group_id) == many


def test_other_backups_are_no_groups(repository: Repository) -> None:
    backup = Backup("web-20261123T202411123456Z", "web", "now")
    save(repository, Zeros(), backup, concurrency=1)
    save(repository, Zeros(), Backup("monday", "web", "now"), concurrency=1)
    assert groups.listed(repository) == []
    with pytest.raises(errors.GroupMissing):
        groups.load(repository, "web-20261123T202411123456Z")
    with pytest.raises(errors.GroupMissing):
        groups.delete(repository, "monday")


def test_one_that_can_not_be_read_hides_no_other(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    one = made(repository, "web", "a")
    other = made(repository, "web", "a", moment=MOMENT.replace(hour=21))
    groups.store(repository, one)
    groups.store(repository, other)
    repository.store.put(f"roots/{other.group_id}", b"{}")
    assert groups.listed(repository) == [one]
    assert other.group_id in caplog.text


def test_the_newest_group_is_first(repository: Repository) -> None:
    one = made(repository, "web", "a")
    other = made(repository, "web", "a", moment=MOMENT.replace(hour=21))
    groups.store(repository, one)
    groups.store(repository, other)
    assert groups.listed(repository) == [other, one]


def test_what_is_new_in_a_record_is_read_back_and_may_be_missing(repository: Repository) -> None:
    group = made(repository, "web", "a")
    device = Device("scsi-hd", "s.0", {"scsi-id": 0}, "virtio-scsi-pci", "s")
    group = replace(
        group,
        members=(replace(group.members[0], device=device),),
        hardware=Hardware("x86_64", "pc-q35-7.2", "max", 2, 1 << 30, kvm=False),
    )
    groups.store(repository, group)
    assert groups.load(repository, group.group_id) == group
    told = asdict(group)
    del told["hardware"], told["members"][0]["device"]
    old = groups._decode(json.dumps({"format": 1, **told}).encode(), "x")
    assert (old.hardware, old.members[0].device) == (None, None)
    assert old.group_id == group.group_id


def test_of_other_machines_the_newest_backup_of_each_disk_is_likely_alike(
    repository: Repository,
) -> None:
    later = MOMENT.replace(hour=21)
    old = made(repository, "db", "a", "b")
    new = made(repository, "db", "b", moment=later)
    made(repository, "web", "a", moment=later)
    expected = [new.members[0].backup_id, old.members[0].backup_id]
    assert groups.newest_of_others(repository, "web") == expected
    for number in range(groups.MOST_LIKE):
        made(repository, f"vm-{number}", "a")
    assert len(groups.newest_of_others(repository, "web")) == groups.MOST_LIKE
