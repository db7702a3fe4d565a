from __future__ import annotations

from lunr.common import ids
from lunr.live.backup.announcements import external_volume_id


def test_volumes_of_two_accounts_do_not_meet() -> None:
    one, other = external_volume_id("acme", "web-root"), external_volume_id("rival", "web-root")
    assert one != other
    assert one == external_volume_id("acme", "web-root")
    assert one.startswith("web-root-")
    assert ids.is_valid(one)
