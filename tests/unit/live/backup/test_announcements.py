from __future__ import annotations

from lunr.common import ids
from lunr.live.backup.announcements import elsewhere


def test_volumes_of_two_accounts_do_not_meet() -> None:
    one, other = elsewhere("acme", "web-root"), elsewhere("rival", "web-root")
    assert one != other
    assert one == elsewhere("acme", "web-root")
    assert one.startswith("web-root-")
    assert ids.is_valid(one)
