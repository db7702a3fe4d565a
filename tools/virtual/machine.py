"""Runs a command in a throw-away VM with Debian's stock kernel, on this machine's files.

usage: tools/vm run [OPTION…] -- COMMAND [ARGUMENT…]

The VM sees all files of this machine as they are; what it writes goes to memory
and is gone after, but for what is in a --share. The command runs as root, in the
same folder, with the same environment and LUNR_VM=1; its output (both streams)
and its exit code are passed on. It has kernel modules that a container's host
may lack: device-mapper, LIO, open-iscsi's, file systems; no network but loopback.

  --disk SIZE[,plain]  another empty disk, as 512M or 4G: /dev/vda, /dev/vdb, …;
                       "plain" ones can neither discard nor write zeros by themselves
  --share FOLDER       what is written there stays
  --memory MIB         default 3072
  --udev               run udevd, as a real machine does; else LVM makes its device
                       nodes itself, which is quicker
  --timeout SECONDS    end the VM after so long, with exit code 124
  -v                   show the kernel's messages at the end

Before the first time: tools/setup --vm. There is no KVM in it: everything is
emulated, some ten times slower than here, so start it once for many tests.

  tools/vm run --disk 1G -- sh -c 'pvcreate /dev/vda && pvs'
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
CACHE = TOP / ".vm"
GUEST = Path(__file__).parent / "guest"

#: What timeout(1) says, and what a shell says of a command that can't be run.
TIMED_OUT = 124
NO_ANSWER = 125

#: Signals that ask this process to end.
_TO_END = (signal.SIGTERM, signal.SIGHUP)

_UNITS = {"M": 1 << 20, "G": 1 << 30}
KERNEL_OPTIONS = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off random.trust_cpu=on tsc=reliable "
    "nowatchdog audit=0 apparmor=0 norandmaps"
)
#: What makes an emulated machine slow: string instructions that go byte by byte, wide vectors,
#: checks at each entry to the kernel, one more level of page tables. With norandmaps above, which
#: lets translated code be used by the next process too, commands take half the time and copies
#: a third.
CPU = "max,erms=off,fsrm=off,avx=off,avx2=off,smap=off,smep=off,la57=off"
_MEGAHERTZ = re.compile(r"cpu MHz\s*: ([\d.]+)")


class CannotRun(Exception):
    """Why there is no VM."""


def run(options: argparse.Namespace, command: Sequence[str]) -> int:
    """Run `command` in a VM and return its exit code.

    Raises:
        CannotRun: the kernel or qemu is missing.
    """
    if not (CACHE / "initramfs.cpio").exists():
        raise CannotRun("the VM's kernel is not there yet: tools/setup --vm")
    with tempfile.TemporaryDirectory(prefix="lunr-vm-") as name:
        folder = Path(name)
        shares = [share.resolve() for share in options.share]
        _write_orders(folder, shares, command, options.udev)
        argv = [*_machine(folder, options.memory), *_files(shares), *_disks(folder, options.disk)]
        _wait(argv, options.timeout, folder)
        code = _read(folder / "code").strip()
        if options.verbose or not code.isdigit():
            sys.stderr.write(_read(folder / "console"))
        if (folder / "timeout").exists():
            print(f"tools/vm: not done after {options.timeout:g} s", file=sys.stderr)
            return TIMED_OUT
        if not code.isdigit():
            print("tools/vm: the VM ended without a word, see above", file=sys.stderr)
            return NO_ANSWER
        return int(code)


def _write_orders(folder: Path, shares: Sequence[Path], command: Sequence[str], udev: bool) -> None:
    """What `start` in the guest reads."""
    folder.chmod(0o755)
    (folder / "start").write_text((GUEST / "start").read_text())
    kernel = shlex.quote(str(CACHE / "kernel"))
    (folder / "settings").write_text(
        f"kernel={kernel} folder={shlex.quote(str(Path.cwd()))} udev={'yes' if udev else 'no'}\n"
    )
    (folder / "shares").write_text("".join(f"{share}\n" for share in shares))
    (folder / "command").write_text("".join(f"{word}\0" for word in command))
    environment = folder / "environment"
    environment.touch(mode=0o600)
    environment.write_text(
        "".join(
            f"export {name}={shlex.quote(value)}\n"
            for name, value in os.environ.items()
            if name.isidentifier()
        )
    )


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


def _disks(folder: Path, disks: Sequence[tuple[int, bool]]) -> list[str]:
    argv = []
    for number, (size, plain) in enumerate(disks):
        image = folder / f"disk{number}"
        image.touch()
        os.truncate(image, size)
        able = "off" if plain else "on"
        drive = f"if=none,id=disk{number},file={image},format=raw,cache=unsafe"
        argv += [
            *("-drive", drive if plain else f"{drive},discard=unmap,detect-zeroes=unmap"),
            "-device",
            f"virtio-blk-pci,drive=disk{number},serial=disk{number},"
            f"discard={able},write-zeroes={able}",
        ]
    return argv


def _wait(argv: Sequence[str], timeout: float | None, folder: Path) -> None:
    """Run qemu to its end; `folder`/timeout tells that it was ended by us."""
    with _asked_to_end(), _started(argv) as process:

        def end() -> None:
            (folder / "timeout").touch()
            process.kill()

        timer = threading.Timer(timeout, end) if timeout else None
        try:
            if timer is not None:
                timer.start()
            process.wait()
        finally:
            if timer is not None:
                timer.cancel()


@contextlib.contextmanager
def _asked_to_end() -> Iterator[None]:
    """End by SystemExit when a signal asks for it; what is inside cleans up."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {sig: signal.signal(sig, stop) for sig in _TO_END}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


@contextlib.contextmanager
def _started(argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive the ``with``.

    When its input ends, the stdio device closes and the guest's writes hang: it is kept open.
    """
    process = None
    try:
        # Told to end in the middle of the start, this process would leave it behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, _TO_END)
        try:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
        except FileNotFoundError as error:
            raise CannotRun(f"{argv[0]} is not installed: tools/setup --vm") from error
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_END)
        yield process
    finally:
        if process is not None:
            process.kill()
            process.wait()


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def parse_disk(text: str) -> tuple[int, bool]:
    """The bytes of a disk, and whether it is plain.

    >>> parse_disk("4G,plain")
    (4294967296, True)
    """
    size, _, kind = text.partition(",")
    if size[-1:] not in _UNITS or not size[:-1].isdigit() or kind not in ("", "plain"):
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 512M, 4G or 4G,plain")
    return int(size[:-1]) * _UNITS[size[-1]], kind == "plain"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/vm run", usage="see tools/vm --help")
    parser.add_argument("--disk", type=parse_disk, action="append", default=[])
    parser.add_argument("--share", type=Path, action="append", default=[])
    parser.add_argument("--memory", type=int, default=3072)
    parser.add_argument("--udev", action="store_true")
    parser.add_argument("--timeout", type=float)
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def main(arguments: Sequence[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    mine, command = arguments[:split], arguments[split + 1 :]
    if {"-h", "--help"} & set(mine) or not mine:
        print((__doc__ or "").split("\n\n", 1)[1])
        return 0 if mine else 2
    if mine[0] != "run" or not command:
        print("tools/vm: say: tools/vm run [OPTION…] -- COMMAND", file=sys.stderr)
        return 2
    try:
        return run(_parser().parse_args(mine[1:]), command)
    except CannotRun as error:
        print(f"tools/vm: {error}", file=sys.stderr)
        return NO_ANSWER


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
