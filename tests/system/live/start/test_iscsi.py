"""Disks over iSCSI, from lunr's own target."""

from __future__ import annotations

import random

from tests.system.live.conftest import FarAndNear, Vault
from tests.system.live.test_backup import ways


def test_full_and_increments(far_and_near: FarAndNear, vault: Vault) -> None:
    machine = far_and_near.machine
    draw = random.Random()
    machine.write_some(draw, 10)
    for expected in ("full", "incremental", "incremental"):
        at_cut = machine.contents()

        def write(call: str, name: str) -> None:
            if call == "put" and name.startswith("sessions/"):
                machine.write_some(draw, 2)

        group = vault.backup(machine, write)
        assert set(ways(group).values()) == {expected}
        assert vault.restored(group) == at_cut
        machine.assert_untouched()
        machine.write_some(draw, 4)
