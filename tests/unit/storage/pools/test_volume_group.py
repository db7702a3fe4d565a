"""What LVM says of a group (reports as it printed them in the VM), and the names given in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.common import errors, ids
from lunr.storage import system
from lunr.storage.pools.base import Purpose, Snapshot
from lunr.storage.pools.lvm.logical_volumes import (
    Role,
    parse_disks,
    parse_report,
    parse_volume,
    tags_for,
)
from lunr.storage.pools.lvm.volume_group import VolumeGroup, statuses

LVS = """\
  {
      "report": [
          {
              "lv": [
                  {"lv_name":"backup-s1", "lv_size":"8388608", "origin":"volume-a-b", "pool_lv":"", "segtype":"linear", "lv_tags":"lunr.id=s1,lunr.role=backup,lunr.volume=a-b", "lv_time":"1795467128", "lv_active":"active", "lv_suspended":"", "lv_device_open":""},
                  {"lv_name":"foreign", "lv_size":"1048576", "origin":"", "pool_lv":"", "segtype":"linear", "lv_tags":"", "lv_time":"1795467128", "lv_active":"", "lv_suspended":"", "lv_device_open":""},
                  {"lv_name":"volume-a-b", "lv_size":"67108864", "origin":"", "pool_lv":"", "segtype":"linear", "lv_tags":"lunr.id=a-b,lunr.role=volume,lunr.volume=a-b", "lv_time":"1795467128", "lv_active":"active", "lv_suspended":"suspended", "lv_device_open":"open"}
              ]
          }
      ]
  }
"""  # noqa: E501

PVS = """\
  {
      "report": [
          {
              "pv": [
                  {"pv_name":"/dev/vda", "pv_size":"335544320", "pv_free":"273809408", "pv_tags":"lunr.zeroed", "pv_allocatable":"allocatable", "pv_missing":"", "pvseg_size":"64", "lv_tags":"lunr.id=v1,lunr.role=volume,lunr.volume=v1"},
                  {"pv_name":"/dev/vda", "pv_size":"335544320", "pv_free":"273809408", "pv_tags":"lunr.zeroed", "pv_allocatable":"allocatable", "pv_missing":"", "pvseg_size":"16", "lv_tags":"lunr.id=s1,lunr.role=snapshot,lunr.volume=v1"},
                  {"pv_name":"/dev/vda", "pv_size":"335544320", "pv_free":"273809408", "pv_tags":"lunr.zeroed", "pv_allocatable":"allocatable", "pv_missing":"", "pvseg_size":"8", "lv_tags":"lunr.id=v2,lunr.role=building,lunr.volume=v1"},
                  {"pv_name":"/dev/vda", "pv_size":"335544320", "pv_free":"273809408", "pv_tags":"lunr.zeroed", "pv_allocatable":"allocatable", "pv_missing":"", "pvseg_size":"4", "lv_tags":"lunr.id=v3,lunr.role=wiping,lunr.volume=v3"},
                  {"pv_name":"/dev/vda", "pv_size":"335544320", "pv_free":"273809408", "pv_tags":"lunr.zeroed", "pv_allocatable":"allocatable", "pv_missing":"", "pvseg_size":"4178", "lv_tags":""},
                  {"pv_name":"[unknown]", "pv_size":"535822336", "pv_free":"450887680", "pv_tags":"", "pv_allocatable":"", "pv_missing":"missing", "pvseg_size":"100", "lv_tags":""}
              ]
          }
      ]
  }
"""  # noqa: E501

NOTHING = """\
  {
      "report": [
          {
              "vg": [
              ]
          }
      ]
  }
"""


def test_logical_volumes() -> None:
    backup, foreign, volume = (parse_volume(row) for row in parse_report(LVS))
    assert backup.snapshot == Snapshot("a-b", "s1", Purpose.BACKUP)
    assert (backup.role, backup.origin, backup.size) == (Role.BACKUP, "volume-a-b", 8 << 20)
    assert (foreign.role, foreign.id, foreign.snapshot, foreign.active) == (None, "", None, False)
    assert (volume.role, volume.id, volume.volume_id) == (Role.VOLUME, "a-b", "a-b")
    assert (volume.open, volume.size, volume.snapshot) == (True, 64 << 20, None)
    assert (volume.suspended, backup.suspended) == (True, False)
    assert volume.made_at == 1795467128.0


def test_disks() -> None:
    good, gone = parse_disks(parse_report(PVS), 64 << 10)
    assert (good.name, good.free, good.tags) == ("/dev/vda", 273809408, {"lunr.zeroed"})
    # The volume, and the one that is being deleted; not the snapshot, nor that which a clone reads.
    assert (good.volumes, gone.volumes) == ((64 + 4) * 64 << 10, 0)
    assert good.allocatable
    assert not good.missing
    assert gone.missing
    assert not gone.allocatable


def test_an_empty_report() -> None:
    assert parse_report(NOTHING) == []


@pytest.mark.parametrize("tag", ["lunr.role=king", "lunr.role=", "lunr.id=../x", "lunr.idx=a"])
def test_tags_of_another_hand_are_not_believed(tag: str) -> None:
    row = {**parse_report(LVS)[1], "lv_tags": tag}
    assert parse_volume(row).role is None
    assert parse_volume(row).id == ""


def test_tags_come_back() -> None:
    words = tags_for(Role.SNAPSHOT, "s_1", "v-1")
    row = {**parse_report(LVS)[1], "lv_tags": ",".join(words[1::2])}
    assert parse_volume(row).snapshot == Snapshot("v-1", "s_1")


_ids = st.from_regex(ids.PATTERN, fullmatch=True)


@given(_ids, _ids, st.sampled_from([Role.VOLUME, Role.SNAPSHOT, Role.BACKUP, Role.BUILDING]))
def test_names_are_good_for_lvm_and_tell_ids_apart(one: str, other: str, role: Role) -> None:
    group = VolumeGroup("a-group-of-at-most-32-characters")
    name = group.name_for(role, one)
    assert (name == group.name_for(role, other)) == (one == other)
    assert "_" not in name
    assert not name.startswith(("snapshot", "pvmove", "-"))
    assert len(f"{group.dm_name(name)}_tmeta") <= 127


def test_a_plain_id_can_be_read_in_the_name() -> None:
    group = VolumeGroup("lunr")
    id_ = ids.new()
    assert group.name_for(Role.VOLUME, id_) == f"volume-{id_}"
    assert group.name_for(Role.SNAPSHOT, "a-b") == "snap-a-b"
    assert group.name_for(Role.VOLUME, "a_tdata").startswith("volume-.")
    assert group.dm_name("volume-a-b") == "lunr-volume--a--b"


@pytest.mark.parametrize("name", ["", "-lunr", "a/b", "a b", "../x", "x" * 33])
def test_a_name_that_no_group_can_have_is_refused(name: str) -> None:
    with pytest.raises(errors.ConfigError, match=r"lvm\.group"):
        VolumeGroup(name)


class Dmsetup:
    """It fails so often, for that reason."""

    def __init__(self, failures: int, reason: str) -> None:
        self.failures, self.reason, self.asked = failures, reason, 0

    def run(self, argv: list[str]) -> system.Result:
        assert argv == ["dmsetup", "status", "--target", "snapshot"]
        self.asked += 1
        if self.asked > self.failures:
            return system.Result(0, "a: 0 8 snapshot 16/32 8", "")
        raise system.CommandFailed(command="dmsetup", code=1, stderr=self.reason)


def test_a_device_that_goes_meanwhile_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = "Device does not exist.\nCommand failed."
    monkeypatch.setattr(system, "run", (dmsetup := Dmsetup(4, gone)).run)
    assert statuses("snapshot") == "a: 0 8 snapshot 16/32 8"
    assert dmsetup.asked == 5
    for dmsetup in (Dmsetup(9, gone), Dmsetup(1, "Incompatible libdevmapper")):
        monkeypatch.setattr(system, "run", dmsetup.run)
        with pytest.raises(system.CommandFailed):
            statuses("snapshot")
    assert dmsetup.asked == 1
