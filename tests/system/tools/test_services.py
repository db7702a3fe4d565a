"""The services that other tests build on are what they say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import swiftclient
from sqlalchemy import create_engine, text

from tests.support.services import CHECKOUT, XFS_MINIMUM, Swift, SwiftAccess, Tgtd
from tests.support.waiting import free_port
from tools.testing import leftovers


def _connect(access: SwiftAccess) -> swiftclient.Connection:
    return swiftclient.Connection(
        access["auth_url"], access["user"], access["key"], auth_version="1", retries=0
    )


@pytest.mark.parametrize("round", [1, 2])
def test_every_test_has_its_own_empty_database(postgresql: str, round: int) -> None:
    engine = create_engine(postgresql)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE things (id integer)"))
    # Not disposed of: the fixture has to get rid of the database all the same.


def test_swift_stores_and_answers(swift_cluster: SwiftAccess) -> None:
    connection = _connect(swift_cluster)
    connection.put_container("answers")
    connection.put_object("answers", "one", b"1" * (5 << 20))
    assert connection.get_object("answers", "one")[1] == b"1" * (5 << 20)
    connection.close()


def test_swift_keeps_its_data_and_address_over_a_restart(own_swift: Swift) -> None:
    access = own_swift.start()
    connection = _connect(access)
    connection.put_container("kept")
    connection.put_object("kept", "one", b"1")
    connection.close()
    own_swift.stop()
    with pytest.raises(requests.ConnectionError):
        _connect(access).get_account()
    assert own_swift.start() == access
    assert own_swift.start() == access, "started twice"
    connection = _connect(access)
    assert connection.get_object("kept", "one")[1] == b"1"
    connection.close()


def _swift(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [CHECKOUT / "tools/swift", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_swift_stops_nothing_but_its_own(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        (tmp_path / "run").mkdir()
        # As if the pid had been used again since: the time of birth is another.
        (tmp_path / "run" / "proxy.pid").write_text(f"{other.pid} 1")
        assert _swift("stop", tmp_path).returncode == 0
        assert other.poll() is None
        other.kill()


def test_swift_removes_nothing_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    refused = _swift("wipe", tmp_path)
    assert refused.returncode == 1
    assert "nothing was removed" in refused.stderr
    assert (tmp_path / "mine").read_text() == "precious"


def test_swift_says_which_port_is_taken(tmp_path: Path, tgtd: Tgtd) -> None:
    refused = _swift("start", tmp_path, "--port", str(tgtd.port))
    assert refused.returncode == 1
    assert f"port {tgtd.port} is taken" in refused.stderr


def _targets(tgtd: Tgtd) -> str:
    show = ["tgtadm", "-C", "0", "--lld", "iscsi", "--op", "show", "--mode", "target"]
    environment = {**os.environ, "TGT_IPC_SOCKET": str(tgtd.socket).removesuffix(".0")}
    done = subprocess.run(show, capture_output=True, text=True, check=True, env=environment)
    return done.stdout


def test_tgtd_answers_and_comes_back_empty(tgtd: Tgtd) -> None:
    new = ["tgtadm", "-C", "0", "--lld", "iscsi", "--op", "new", "--mode", "target"]
    environment = {**os.environ, "TGT_IPC_SOCKET": str(tgtd.socket).removesuffix(".0")}
    subprocess.run([*new, "--tid", "1", "-T", "iqn.x:y"], check=True, env=environment)
    assert "iqn.x:y" in _targets(tgtd)
    tgtd.kill()
    tgtd.start()
    assert _targets(tgtd) == ""


def test_xfs_shares_blocks(xfs_mount: Path) -> None:
    (xfs_mount / "a").write_bytes(b"1" * 65536)
    subprocess.run(
        ["cp", "--reflink=always", str(xfs_mount / "a"), str(xfs_mount / "b")], check=True
    )


def test_a_mount_and_its_loop_device_are_seen_as_left_over(
    make_xfs: Callable[[int], Path], run_folder: Path
) -> None:
    point = make_xfs(XFS_MINIMUM)
    found = leftovers.find(run_folder)
    assert f"mount {point}" in found
    assert [one for one in found if one.endswith(f" of {point.parent}/image")]


def test_a_port_is_handed_out_once() -> None:
    assert len({free_port() for _ in range(100)}) == 100
