"""tgtd's answers, as version 1.0.85 gave them, and the size of what it is asked."""

from __future__ import annotations

import doctest
import os
import socket
import threading
from pathlib import Path

import pytest

from lunr.storage.targets.base import TargetUnavailable
from lunr.storage.targets.tgt import control, target
from lunr.storage.targets.tgt.control import (
    Mode,
    Op,
    Refused,
    Unit,
    parse_targets,
    parse_values,
    request,
)

SHOWN = """\
Target 4: iqn.2026-11.io.lunr:v1
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 5
            Initiator: iqn.2008-11.org.linux-kvm alias: none
            Connection: 0
                IP Address: 127.0.0.1
        I_T nexus: 9
            Initiator: iqn.x:two alias: an alias: with colons
            Connection: 1
                IP Address: fe80::1
    LUN information:
        LUN: 0
            Type: controller
            SCSI ID: IET     00040000
            Online: Yes
            Backing store type: null
            Backing store path: None
            Backing store flags:
        LUN: 1
            Type: disk
            SCSI ID: 3bfc269594ef649228e9a74bab00f042
            SCSI SN: v1
            Size: 10 MB, Block size: 512
            Backing store type: rdwr
            Backing store path: /srv/a: b/volumes/v1
            Backing store flags:
    Account information:
        user1
    ACL information:
        127.0.0.1
        iqn.x:y
Target 7: iqn.x:bare
    System information:
        Driver: iscsi
        State: offline
    I_T nexus information:
    LUN information:
        LUN: 0
            Type: controller
            Backing store path: None
    Account information:
    ACL information:
"""


def test_targets_are_read_whole() -> None:
    one, two = parse_targets(SHOWN)
    assert (one.tid, one.iqn, one.state) == (4, "iqn.2026-11.io.lunr:v1", "ready")
    assert one.connections == [
        (5, 0, {"initiator": "iqn.2008-11.org.linux-kvm", "ip": "127.0.0.1"}),
        (9, 1, {"initiator": "iqn.x:two", "ip": "fe80::1"}),
    ]
    assert one.luns == {
        0: Unit("None", "", "IET     00040000"),
        1: Unit("/srv/a: b/volumes/v1", "v1", "3bfc269594ef649228e9a74bab00f042"),
    }
    assert one.accounts == ["user1"]
    assert one.acls == ["127.0.0.1", "iqn.x:y"]
    assert (two.tid, two.state, two.connections, two.luns) == (7, "offline", [], {0: Unit("None")})
    assert (two.accounts, two.acls) == ([], [])
    assert parse_targets("") == []


def test_values_are_read() -> None:
    assert parse_values("RedirectAddress=127.0.0.1\nRedirectPort=9\nEmpty=\n") == {
        "RedirectAddress": "127.0.0.1",
        "RedirectPort": "9",
        "Empty": "",
    }


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(target).failed == 0


def _answering(path: Path, answer: bytes, heard: list[bytes] | None = None) -> threading.Thread:
    """A socket at `path` that reads one request, which goes to `heard`, and gives `answer`."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()

    def serve() -> None:
        with listening, listening.accept()[0] as peer:
            request = peer.recv(4096)
            if heard is not None:
                heard.append(request)
            peer.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\0\0\0",
        b"\0\0\0\0\x20\0\0\0short",
        b"\0\0\0\0\xff\xff\xff\xff",  # 4 GiB announced
        b"\0\0\0\0\x01\0\0\0",  # less than its own head
    ],
)
def test_a_broken_answer_is_an_error_and_no_memory(tmp_path: Path, answer: bytes) -> None:
    thread = _answering(tmp_path / "s", answer)
    with pytest.raises(TargetUnavailable):
        request(tmp_path / "s", Mode.SYSTEM, Op.SHOW)
    thread.join()


def test_a_refusal_says_why_and_not_what_was_secret(tmp_path: Path) -> None:
    thread = _answering(tmp_path / "s", b"\x0c\0\0\0\x08\0\0\0")
    with pytest.raises(Refused, match="this account already exists") as caught:
        request(tmp_path / "s", Mode.ACCOUNT, Op.NEW, "user=u,password=hush")
    assert caught.value.number == 12
    assert "hush" not in str(caught.value)
    thread.join()


def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match="nothing"):
        request(tmp_path / "nothing", Mode.SYSTEM, Op.SHOW)


def test_the_request_is_as_long_as_tgtd_reads() -> None:
    assert control._REQUEST.size == 120


def test_no_connection_is_closed_without_a_request(tmp_path: Path) -> None:
    """tgtd reads the end of one that is again and again, with all of a processor."""
    heard: list[bytes] = []
    thread = _answering(tmp_path / "s", b"\0\0\0\0\x08\0\0\0", heard)
    assert control.daemon(tmp_path / "s") == os.getpid()
    thread.join()
    assert [len(request) for request in heard] == [control._REQUEST.size]
