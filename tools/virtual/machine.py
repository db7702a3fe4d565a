"""Runs a command in a throw-away VM, on this machine's files.

usage: tools/vm run [OPTION…] -- COMMAND [ARGUMENT…]

The VM sees all files of this machine as they are; what it writes goes to memory
and is gone after, but for what is in a --share. The command runs as root, in the
same folder, with the same environment and LUNR_VM=1; its output (both streams)
and its exit code are passed on. It has kernel modules that a container's host
may lack: device-mapper, LIO, open-iscsi's, file systems; no network but loopback.

  --machine uml|qemu   "uml", the default, is User Mode Linux: a kernel that is a
                       process here; it starts in a second and computes as fast as
                       this machine. "qemu" emulates a machine with Debian's stock
                       kernel, as operators run it: some ten times slower; the default
                       where no User Mode Linux runs, and with LUNR_VM_MACHINE=qemu
  --disk SIZE[,plain]  another empty disk, as 512M or 4G: /dev/vda, /dev/vdb, …;
                       "plain" ones can neither discard nor write zeros by themselves
  --share FOLDER       what is written there stays
  --memory MIB         default 1536, qemu's 3072
  --udev               run udevd, as a real machine does; else LVM makes its device
                       nodes itself, which is quicker
  --timeout SECONDS    end the VM after so long, with exit code 124
  -v                   show the kernel's messages at the end

Before the first time: tools/setup --vm.

  tools/vm run --disk 1G -- sh -c 'pvcreate /dev/vda && pvs'
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.virtual import qemu, uml
from tools.virtual.launch import CACHE, NO_ANSWER, CannotRun, Disk, Order

MACHINES = {"uml": uml.run, "qemu": qemu.run}
_UNITS = {"M": 1 << 20, "G": 1 << 30}


def parse_disk(text: str) -> Disk:
    """What kind of disk is asked for.

    >>> parse_disk("4G,plain")
    Disk(size=4294967296, is_plain=True)
    """
    size, _, kind = text.partition(",")
    if size[-1:] not in _UNITS or not size[:-1].isdigit() or kind not in ("", "plain"):
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 512M, 4G or 4G,plain")
    return Disk(int(size[:-1]) * _UNITS[size[-1]], kind == "plain")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/vm run", usage="see tools/vm --help")
    machine = os.environ.get("LUNR_VM_MACHINE") or None
    parser.add_argument("--machine", choices=MACHINES, default=machine)
    parser.add_argument("--disk", type=parse_disk, action="append", default=[])
    parser.add_argument("--share", type=Path, action="append", default=[])
    parser.add_argument("--memory", type=int)
    parser.add_argument("--udev", action="store_true")
    parser.add_argument("--timeout", type=float)
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


def _default() -> str:
    if uml.chosen_kernel() is None and (CACHE / "initramfs.cpio").exists():
        print("tools/vm: no user-mode-linux runs here, so it is QEMU, slowly", file=sys.stderr)
        return "qemu"
    return "uml"


def main(arguments: Sequence[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    mine, command = arguments[:split], arguments[split + 1 :]
    if {"-h", "--help"} & set(mine) or not mine:
        print((__doc__ or "").split("\n\n", 1)[1])
        return 0 if mine else 2
    if mine[0] != "run" or not command:
        print("tools/vm: say: tools/vm run [OPTION…] -- COMMAND", file=sys.stderr)
        return 2
    options = _parser().parse_args(mine[1:])
    order = Order(
        command,
        options.disk,
        options.share,
        options.memory,
        options.udev,
        options.timeout,
        options.verbose,
    )
    try:
        return MACHINES[options.machine or _default()](order)
    except CannotRun as error:
        print(f"tools/vm: {error}", file=sys.stderr)
        return NO_ANSWER


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
