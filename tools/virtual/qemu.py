"""Debian's stock kernel in an emulated machine: what operators run, but slow."""

from __future__ import annotations

import lzma
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.virtual.launch import (
    CACHE,
    CannotRun,
    Disk,
    Order,
    judge_end,
    make_image,
    started,
    wait_for_end,
    write_order,
)

#: Without no_timer_check a kernel panics whose emulator gets too little of a busy machine to
#: deliver ten ticks of a timer in time.
KERNEL_OPTIONS = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off random.trust_cpu=on tsc=reliable "
    "nowatchdog audit=0 apparmor=0 norandmaps no_timer_check"
)
#: What makes an emulated machine slow: string instructions that go byte by byte, wide vectors,
#: checks at each entry to the kernel, one more level of page tables. With norandmaps above, which
#: lets translated code be used by the next process too, commands take half the time and copies
#: a third.
CPU = "max,erms=off,fsrm=off,avx=off,avx2=off,smap=off,smep=off,la57=off"
_MEGAHERTZ = re.compile(r"cpu MHz\s*: ([\d.]+)")
_MEMORY = 3072


def run(order: Order) -> int:
    """Run the order in a VM and return its exit code.

    Raises:
        CannotRun: the kernel or qemu is missing.
    """
    if not (CACHE / "initramfs.cpio").exists():
        raise CannotRun("the VM's kernel is not there yet: tools/setup --vm")
    if shutil.which("qemu-system-x86_64") is None:
        raise CannotRun("qemu-system-x86_64 is not installed: tools/setup --vm")
    with tempfile.TemporaryDirectory(prefix="lunr-vm-") as name:
        folder = Path(name)
        write_order(folder, order, "qemu", CACHE / "kernel" / "lib" / "modules")
        shares = [share.resolve() for share in order.shares]
        argv = [
            *_machine(folder, order.memory or _MEMORY),
            *_files(shares),
            *_disks(folder, order.disks),
        ]
        # When its input ends, the stdio device closes and the guest's writes hang.
        with started(argv, stdin=subprocess.PIPE) as process:
            timed_out = wait_for_end(process, order.timeout)
        return judge_end(order, folder / "code", folder / "console", timed_out)


def unpack_kernel(folder: Path) -> Path:
    """The kernel as it is in memory. To unpack itself takes it as long as all the rest."""
    (packed,) = (CACHE / "kernel" / "boot").glob("vmlinuz-*")
    data = packed.read_bytes()
    # Linux's Documentation/arch/x86/boot.rst: setup_sects, payload_offset and payload_length.
    (sectors,) = struct.unpack_from("<B", data, 0x1F1)
    offset, length = struct.unpack_from("<2I", data, 0x248)
    start = (sectors + 1) * 512 + offset
    kernel = folder / "vmlinux"
    kernel.write_bytes(lzma.LZMADecompressor().decompress(data[start : start + length]))
    return kernel


def clock() -> str:
    """The kernel's option that spares it the measuring of its clock.

    The emulated counter is this machine's own. On a busy one the measurement goes
    wrong, and the VM's clock ran up to four times too fast.
    """
    match = _MEGAHERTZ.search(Path("/proc/cpuinfo").read_text())
    return f"tsc_early_khz={round(float(match[1]) * 1000)}" if match else ""


def _machine(folder: Path, memory: int) -> list[str]:
    version = next((CACHE / "kernel" / "lib" / "modules").iterdir()).name
    return [
        "qemu-system-x86_64",
        # With KVM, Debian's kernel does not come up inside some virtual machines.
        *("-accel", "tcg,thread=multi,tb-size=512", "-machine", "q35", "-cpu", CPU),
        # A second one makes it slower: they wait for each other at every locked instruction.
        *("-smp", "1", "-m", str(memory), "-nodefaults", "-display", "none", "-no-reboot"),
        *("-kernel", str(CACHE / "kernel" / "boot" / f"vmlinuz-{version}")),
        *("-initrd", str(CACHE / "initramfs.cpio")),
        *("-append", f"{KERNEL_OPTIONS} {clock()} lunr_run={folder}"),
        *("-serial", f"file:{folder}/console", "-device", "virtio-rng-pci"),
        *("-device", "virtio-serial-pci", "-chardev", "stdio,id=output,signal=off"),
        *("-device", "virtserialport,chardev=output,name=output"),
        *("-chardev", f"file,id=code,path={folder}/code"),
        *("-device", "virtserialport,chardev=code,name=code"),
    ]


def _files(shares: Sequence[Path]) -> list[str]:
    """This machine's files, and those folders that can be written."""
    argv = [
        *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
    ]
    for number, share in enumerate(shares):
        where = f"local,id=share{number},path={share},security_model=none,multidevs=remap"
        device = f"virtio-9p-pci,fsdev=share{number},mount_tag=share{number}"
        argv += ["-fsdev", where, "-device", device]
    return argv


def _disks(folder: Path, disks: Sequence[Disk]) -> list[str]:
    argv = []
    for number, disk in enumerate(disks):
        image = folder / f"disk{number}"
        make_image(image, disk)
        able = "off" if disk.is_plain else "on"
        drive = f"if=none,id=disk{number},file={image},format=raw,cache=unsafe"
        argv += [
            *("-drive", drive if disk.is_plain else f"{drive},discard=unmap,detect-zeroes=unmap"),
            "-device",
            f"virtio-blk-pci,drive=disk{number},serial=disk{number},"
            f"discard={able},write-zeroes={able}",
        ]
    return argv
