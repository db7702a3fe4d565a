"""What LIO shows of a session, as Linux 6.1 shows it, and the names it is given."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from lunr.common import errors
from lunr.storage.targets.lio import target, tree
from lunr.storage.targets.lio.target import LioTarget

INFO = """\
InitiatorName: iqn.x:init
InitiatorAlias: vm
LIO Session ID: 5   ISID: 0x00 02 3d 00 00 01  TSIH: 7  SessionType: Normal
Session State: TARG_SESS_STATE_LOGGED_IN
---------------------[iSCSI Session Values]-----------------------
  CmdSN/WR  :  CmdSN/WC  :  ExpCmdSN  :  MaxCmdSN  :     ITT    :     TTT
 0x00000040   0x00000040   0x00000027   0x00000066   0x00000027   0x00000025
----------------------[iSCSI Connections]-------------------------
CID: 0  Connection State: TARG_CONN_STATE_LOGGED_IN
   Address 127.0.0.1 TCP  StatSN: 0x057fdfe4
"""


@pytest.mark.parametrize(
    ("shown", "ip"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[fe80:0:0::1]", "fe80::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:10.0.0.5", "10.0.0.5"),
    ],
)
def test_a_session_is_read(shown: str, ip: str) -> None:
    info = INFO.replace("127.0.0.1", shown)
    assert tree.parse_session(info) == {"initiator": "iqn.x:init", "ip": ip}


def test_a_session_without_a_connection_has_no_address() -> None:
    info = INFO.partition("CID:")[0]
    assert tree.parse_session(info) == {"initiator": "iqn.x:init", "ip": ""}


@pytest.mark.parametrize("portal", ["", "3260", "host.example:3260", "10.0.0.2", "10.0.0.2:x"])
def test_a_portal_is_an_address_and_a_port(portal: str) -> None:
    with pytest.raises(errors.ConfigError, match="ADDRESS:PORT"):
        LioTarget(portal, Path("/dev/vg"))


def test_ids_that_differ_late_have_other_designators() -> None:
    """The kernel makes the NAA designator of the first 25 hexadecimal digits."""
    ids = [f"11111111-aaaa-4aaa-8aaa-{number:012}" for number in range(100)]
    digits = {"".join(c for c in tree.serial(one) if c in "0123456789abcdef")[:25] for one in ids}
    assert len(digits) == len(ids)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(target).failed == 0
    assert doctest.testmod(tree).failed == 0


@pytest.mark.parametrize(
    ("kernel", "changed"),
    [
        ({}, {"emulate_tpu": "1"}),
        ({"atomic_max_len": "128"}, {"emulate_tpu": "1"}),
        (
            {"atomic_max_len": "0"},
            {
                "emulate_tpu": "1",
                "emulate_tpws": "1",
                "unmap_zeroes_data": "0",
                "max_write_same_len": "8388607",
            },
        ),
        ({"max_unmap_lba_count": "0"}, {}),
        ({"max_unmap_lba_count": "0", "atomic_max_len": "0"}, {}),
    ],
)
def test_initiators_may_discard_on_every_kernel(
    kernel: dict[str, str], changed: dict[str, str], tmp_path: Path
) -> None:
    before = {
        "max_unmap_lba_count": "64",
        "emulate_tpu": "0",
        "emulate_tpws": "0",
        "unmap_zeroes_data": "1",
        "max_write_same_len": "64",
        **kernel,
    }
    for name, value in before.items():
        (tmp_path / name).write_text(f"{value}\n")
    tree.allow_discards(tmp_path)
    after = {path.name: path.read_text().strip() for path in tmp_path.iterdir()}
    assert after == {**before, **changed}
