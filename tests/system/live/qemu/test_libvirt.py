"""A domain of a real libvirt, whose QEMU runs as another user and in its sandbox."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lunr.live import errors
from lunr.live.backup import groups
from lunr.live.cli import live
from lunr.live.qemu import libvirt
from tests.support.services import need_command, need_root
from tests.support.waiting import PATIENCE, wait_until
from tests.system.live.conftest import Vault
from tests.system.live.machines import _HALT, need_qemu

#: nobody: a libvirt of its own, as a user has it (qemu:///session).
USER = 65534

DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>32</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='rom'>{folder}/halt.bin</loader>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='scsi' model='virtio-scsi'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' discard='unmap'/>
      <source file='{folder}/root.raw'/>
      <target dev='vda' bus='virtio'/>
      <alias name='ua-root'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='{folder}/data.qcow2'/>
      <target dev='sda' bus='scsi'/>
      <alias name='ua-data'/>
    </disk>
    <memballoon model='none'/>
  </devices>
  {more}
</domain>
"""
SOCKET = """<qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{folder}/web.qmp,server=on,wait=off'/>
  </qemu:commandline>"""


class Libvirt:
    """A libvirtd of the user nobody, and what is run against it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, size in (("root.raw", 8), ("data.qcow2", 8)):
            kind = name.rpartition(".")[2]
            argv = ["qemu-img", "create", "-q", "-f", kind, str(folder / name), f"{size}M"]
            subprocess.run(argv, check=True)
        (folder / "halt.bin").write_bytes(_HALT)
        names = ("RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME")
        self.env = {
            **{f"XDG_{name}": str(folder / name.lower()) for name in names},
            "HOME": str(folder),
            "LIBVIRT_DEFAULT_URI": "qemu:///session",
        }
        for path in (folder, *(Path(self.env[f"XDG_{name}"]) for name in names)):
            path.mkdir(exist_ok=True, mode=0o700)
        # Else it starts a virtlogd, which outlives it for two minutes.
        settings = Path(self.env["XDG_CONFIG_HOME"]) / "libvirt"
        settings.mkdir()
        (settings / "qemu.conf").write_text('stdio_handler = "file"\n')
        os.chown(settings, USER, USER)
        for path in folder.iterdir():
            os.chown(path, USER, USER)
        os.chown(folder, USER, USER)
        self.log = (folder / "log").open("wb")
        self.daemon = self._start("libvirtd", stderr=self.log)
        wait_until(lambda: self.virsh("list").returncode == 0, what="libvirtd")

    def _start(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        given = {"user": USER, "group": USER, "extra_groups": [], **options}
        return subprocess.Popen(argv, env={**os.environ, **self.env}, **given)

    def virsh(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        process = self._start(
            "virsh", "-c", "qemu:///session", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def create(self, name: str, more: str) -> None:
        path = self.folder / f"{name}.xml"
        path.write_text(DOMAIN.format(name=name, folder=self.folder, more=more))
        path.chmod(0o644)
        done = self.virsh("create", str(path))
        assert done.returncode == 0, done.stderr

    def end(self) -> None:
        for name in self.virsh("list", "--name").stdout.decode().split():
            self.virsh("destroy", name)
        self.daemon.terminate()
        self.daemon.wait(PATIENCE)
        self.log.close()


@pytest.fixture
def domains() -> Iterator[Libvirt]:
    need_root()
    need_qemu()
    need_command("libvirtd", "libvirt-daemon and libvirt-daemon-driver-qemu")
    need_command("virsh", "libvirt-clients")
    # Short: the path of a unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="lv"))
    found = Libvirt(folder)
    try:
        yield found
    finally:
        found.end()
        shutil.rmtree(folder)


def test_a_domain_with_a_second_socket(
    domains: Libvirt, vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains.create("web", SOCKET.format(folder=domains.folder))
    _as_user(domains, monkeypatch)

    def backup() -> dict[str, Any]:
        words = ["backup", "--libvirt", "web", "--scratch", str(tmp_path), "--json"]
        result = CliRunner().invoke(live, words, env={"LUNR_STORE": vault.url})
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    def write(value: int) -> None:
        io = f'qemu-io -d /machine/peripheral/ua-root/virtio-backend "write -P {value} 0 64k"'
        done = domains.virsh("qemu-monitor-command", "web", "--hmp", io)
        assert b"error" not in done.stdout + done.stderr, done

    write(3)
    assert {one["disk"]: one["way"] for one in backup()["members"]} == {
        "ua-root": "full",
        "ua-data": "full",
    }
    write(4)
    second = backup()
    assert [one["way"] for one in second["members"]] == ["incremental", "incremental"]
    # What was written, and the last block: see lunr/live/qemu/bitmaps.py.
    assert second["members"][0]["bytes_read"] == (64 << 10) + (32 << 10)
    assert domains.virsh("domstate", "web").stdout.split() == [b"running"]
    # libvirt's own snapshot brings new nodes: that disk is compared, and right.
    snapshot = f"vda,file={domains.folder}/root.snap"
    words = ("--disk-only", "--diskspec", snapshot, "--diskspec", "sda,snapshot=no")
    assert domains.virsh("snapshot-create-as", "web", "s1", *words).returncode == 0
    write(5)
    third = backup()
    assert [one["way"] for one in third["members"]] == ["compared", "incremental"]
    restored = vault.restored(groups.load(vault.repository, third["group_id"]))
    assert restored["ua-root"] == bytes([5]) * (64 << 10) + bytes((8 << 20) - (64 << 10))
    assert domains.virsh("domstate", "web").stdout.split() == [b"running"]


def test_a_domain_without_one_and_one_that_is_not_there(
    domains: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains.create("plain", "")
    _as_user(domains, monkeypatch)
    with pytest.raises(errors.NoSuchDomain, match="no second QMP socket"):
        libvirt.socket_of("plain")
    with pytest.raises(errors.NoSuchDomain, match="nobody"):
        libvirt.socket_of("nobody")


def test_virsh_speaks_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "virsh"
    stub.write_text("""#!/bin/sh
case $LC_ALL in
C) echo "error: failed to get domain 'web'" >&2 ;;
*) echo "Fehler: die Domain 'web' gibt es nicht" >&2 ;;
esac
exit 1
""")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("LANG", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.setenv(name, "de_DE.UTF-8")
    with pytest.raises(errors.NoSuchDomain, match="used: failed to get domain 'web'"):
        libvirt.socket_of("web")


def _as_user(domains: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `virsh` find the libvirt of that user: root's own is another one."""
    path = domains.folder / "runtime_dir" / "libvirt" / "libvirt-sock"
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", f"qemu+unix:///session?socket={path}")
