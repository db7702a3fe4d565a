"""What the kernel's target (LIO) has in configfs for one export, made and taken down.

An export is a disk (``core/iblock_N/VOLUME``, or ``core/fileio_N/VOLUME`` where
the volume is a file) and a target (``iscsi/IQN/tpgt_1``) with one LUN, one
initiator's ACL and one portal. The disk is made first and removed last, in
adapters (``…_N``) that have nothing but lunr's, and its ``alias`` is the
target's name: so whatever point a process was killed at, what is lunr's can be
told from what is others', and found. The ACL's ``tag`` is the address that its
sessions must come from.

Nobody can log in to a target that is disabled, nor by an ACL without CHAP name:
such an ACL is called closed here.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import re
import threading
from pathlib import Path

from lunr.storage.targets.base import Export, Session, TargetFailed
from lunr.storage.targets.lio import configfs

CONFIGFS = Path("/sys/kernel/config")
ROOT = CONFIGFS / "target"
TARGETS = ROOT / "iscsi"
#: lunr's adapters; any number that others, who count from 0, will not reach.
_IBLOCK, _FILEIO = (ROOT / "core" / f"{kind}_5867" for kind in ("iblock", "fileio"))
#: Held by who makes a disk in an adapter, or removes one without disks.
_adapters = threading.Lock()
#: How the kernel is told, and shows, that a CHAP name is not set.
_UNSET = "NULL"
_ATTRIBUTES = {
    "authentication": "1",
    "generate_node_acls": "0",
    # Discovery tells the target's name only to the initiator it is for.
    "demo_mode_discovery": "0",
    "prod_mode_write_protect": "0",
}
#: What Linux as an initiator asks for at most in one WRITE SAME (SD_MAX_WS16_BLOCKS); the kernel
#: refuses more than it is told.
_MOST_BLOCKS = 0x7FFFFF
#: Paths are given to the kernel among other options, separated by commas.
_PLAIN_PATH = re.compile(r"[^,\s\x00-\x1f\x7f]{1,500}")


def disks() -> dict[str, Path]:
    """By their ids, the volumes that have a disk, whatever else there is of their exports."""
    return {
        disk.name: disk for adapter in (_IBLOCK, _FILEIO) for disk in configfs.children(adapter)
    }


def backing(disk: Path) -> Path | None:
    """The volume's file or device; None: the disk was not made up to there."""
    path = configfs.read(disk / "udev_path")
    return Path(path) if path else None


def prepare(export: Export, portal: str) -> None:
    """Make or correct all that `export` needs, but let nobody in whom it did not admit before.

    Sessions that it does not admit are cut; the ACL is closed if its
    credentials are not those of `export`.
    """
    group = _portal_group(_disk(export), export)
    name = _initiator(export)
    acls = group / "acls"
    for other in configfs.children(acls):
        if other.name != name:
            _remove_acl(other)
    acl = acls / name
    acl.mkdir(exist_ok=True)
    address = "" if export.ip is None else _address(export.ip)
    if (demanded(acl), *_credentials(acl)) != (address, export.username, export.password):
        close(acl)
        configfs.write(acl / "tag", address or _UNSET)
        configfs.write(acl / "auth" / "password", export.password)
    _set_lun(group, acl, export)
    portals = group / "np"
    for other in configfs.children(portals):
        if other.name != portal:
            other.rmdir()
    (portals / portal).mkdir(exist_ok=True)


def admit(export: Export) -> None:
    """Let the initiator of a prepared export in."""
    group = _group(export.iqn)
    reopen(group / "acls" / _initiator(export), export.username)
    configfs.write(group / "enable", "1")


def close(acl: Path) -> str:
    """Let nobody log in anew by `acl`; sessions stay. Returns its CHAP name, "" if it has none."""
    name = _credentials(acl)[0]
    if name:
        configfs.write(acl / "auth" / "userid", _UNSET)
    return name


def reopen(acl: Path, name: str) -> None:
    """Let initiators log in by `acl` with the CHAP name `name`; "": it stays closed."""
    if name:
        configfs.write(acl / "auth" / "userid", name)


def take_down(disk: Path) -> None:
    """Remove the export that `disk` is of, with its sessions."""
    iqn = configfs.read(disk / "alias")
    if iqn and (TARGETS / iqn).exists():
        group = _group(iqn)
        if group.exists():
            configfs.write(group / "enable", "0")
            for acl in configfs.children(group / "acls"):
                _remove_acl(acl)
            for lun in configfs.children(group / "lun"):
                configfs.disconnect(lun)
            for portal in configfs.children(group / "np"):
                portal.rmdir()
            group.rmdir()
        (TARGETS / iqn).rmdir()
    disk.rmdir()


def sweep() -> None:
    """Remove the adapters that have no disk."""
    for adapter in (_IBLOCK, _FILEIO):
        with _adapters, contextlib.suppress(OSError):  # it has some, or is not there
            adapter.rmdir()


def resize(disk: Path) -> None:
    """Have the disk be as large as its volume is now.

    A device is asked for its size whenever an initiator asks; of a file the
    kernel keeps the size it was told.
    """
    path = backing(disk)
    if disk.parent == _FILEIO and path is not None:
        (disk / "control").write_text(f"fd_dev_size={path.stat().st_size}")


# --- sessions ----------------------------------------------------------------------


def acl_of(disk: Path) -> Path | None:
    """The ACL of the export that `disk` is of, if it has one."""
    return next(iter(configfs.children(_group(configfs.read(disk / "alias")) / "acls")), None)


def sessions(disk: Path) -> list[Session]:
    """Who is logged in.

    The kernel counts all sessions of a target, but describes only the last
    one of an ACL. The others have the same initiator, and no address here.
    """
    iqn = configfs.read(disk / "alias")
    statistics = TARGETS / iqn / "fabric_statistics" / "iscsi_instance"
    try:
        count = int(configfs.read(statistics / "sessions")) if iqn else 0
    except FileNotFoundError:  # the target is not made yet, or is gone
        return []
    acl = acl_of(disk) if count else None
    if acl is None:
        return []
    last = parse_session(configfs.read(acl / "info"))
    known = [] if last is None else [last]
    hidden = Session(initiator=acl.name, ip="")
    return [*known, *[hidden] * (count - len(known))]


def parse_session(info: str) -> Session | None:
    """The session that an ACL's ``info`` describes (lio_target_nacl_info_show).

    >>> parse_session("No active iSCSI Session for Initiator Endpoint: iqn.x:y")
    """
    name = re.search(r"^InitiatorName: (.*)$", info, re.MULTILINE)
    if name is None:
        return None
    address = re.search(r"^ *Address (\S+) ", info, re.MULTILINE)
    return Session(initiator=name[1], ip=_address(address[1]) if address else "")


def demanded(acl: Path) -> str:
    """The address that the sessions of `acl` must come from; "": any."""
    tag = configfs.read(acl / "tag")
    return tag if tag != _UNSET else ""


def cut(acl: Path) -> None:
    """End the sessions of `acl`; its initiator may log in again.

    The kernel does so when an ACL gets another depth of its command queue
    (core_tpg_set_initiator_node_queue_depth).
    """
    depth = configfs.read(acl / "cmdsn_depth")
    (acl / "cmdsn_depth").write_text("64" if depth != "64" else "63")


# --- parts of prepare --------------------------------------------------------------


def _disk(export: Export) -> Path:
    if not _PLAIN_PATH.fullmatch(str(export.path)):
        raise TargetFailed(action="export", reason=f"the path {export.path!s} has a comma or space")
    if export.username.startswith(_UNSET) or export.password.startswith(_UNSET):
        raise TargetFailed(action="export", reason=f"{_UNSET} at the beginning means none to it")
    export.path.stat()  # nothing is taken down for a path that is not there
    disk = (_IBLOCK if export.path.is_block_device() else _FILEIO) / export.volume_id
    there = disks().get(export.volume_id)
    if there is not None:
        if there == disk and _is_as_asked(disk, export):
            resize(disk)
            return disk
        take_down(there)
    if (TARGETS / export.iqn).exists():
        raise TargetFailed(
            action=f"make {export.iqn}", reason="there is a target of this name that is not lunr's"
        )
    with _adapters:
        disk.parent.mkdir(exist_ok=True)
        disk.mkdir()
    configfs.write(disk / "alias", export.iqn)
    option = f"udev_path={export.path}"
    if disk.parent == _FILEIO:
        option = f"fd_dev_name={export.path},fd_dev_size={export.path.stat().st_size}"
    (disk / "control").write_text(option)
    configfs.write(disk / "udev_path", str(export.path))
    configfs.write(disk / "enable", "1")
    configfs.write(disk / "wwn" / "vendor_id", "LUNR")
    configfs.write(disk / "wwn" / "product_id", "VOLUME")
    # EXTENDED COPY reaches from one disk to another; nobody needs it here.
    configfs.write(disk / "attrib" / "emulate_3pc", "0")
    if disk.parent == _IBLOCK:
        allow_discards(disk / "attrib")
    # Last: by it a disk that is made to its end is known.
    (disk / "wwn" / "vpd_unit_serial").write_text(serial(export.serial))
    return disk


def allow_discards(attributes: Path) -> None:
    """Let initiators discard, if the device below can.

    A kernel that knows atomic writes (7.2 does, 6.12 does not) tells their limits in the page in
    which those of UNMAP are, and ends that page before them where the device has none
    (spc_emulate_evpd_b0). Linux as an initiator believes the page as a whole only
    (sd_read_block_limits), and would discard nothing. WRITE SAME with UNMAP it takes without it.

    Args:
        attributes: the folder of the disk's attributes.
    """
    if configfs.read(attributes / "max_unmap_lba_count") == "0":
        return
    configfs.write(attributes / "emulate_tpu", "1")
    atomic = attributes / "atomic_max_len"
    if atomic.exists() and configfs.read(atomic) == "0":
        # Else initiators would write zeros by the same command, and it only discards.
        configfs.write(attributes / "unmap_zeroes_data", "0")
        configfs.write(attributes / "max_write_same_len", str(_MOST_BLOCKS))
        configfs.write(attributes / "emulate_tpws", "1")


def _is_as_asked(disk: Path, export: Export) -> bool:
    return (
        configfs.read(disk / "alias") == export.iqn
        and configfs.read(disk / "udev_path") == str(export.path)
        and configfs.read(disk / "wwn" / "vpd_unit_serial").partition(": ")[2]
        == serial(export.serial)
    )


def _portal_group(disk: Path, export: Export) -> Path:
    group = _group(export.iqn)
    group.parent.mkdir(exist_ok=True)
    group.mkdir(exist_ok=True)
    for name, value in _ATTRIBUTES.items():
        configfs.write(group / "attrib" / name, value)
    lun = group / "lun" / f"lun_{export.lun}"
    for other in configfs.children(group / "lun"):
        if other != lun:
            for mapped in (group / "acls").glob(f"*/{other.name}"):
                configfs.disconnect(mapped)
            configfs.disconnect(other)
    configfs.connect(lun, disk)
    return group


def _set_lun(group: Path, acl: Path, export: Export) -> None:
    name = f"lun_{export.lun}"
    for other in configfs.children(acl, "lun_*"):
        if other.name != name:
            configfs.disconnect(other)
    configfs.connect(acl / name, group / "lun" / name)


def _remove_acl(acl: Path) -> None:
    close(acl)
    for mapped in configfs.children(acl, "lun_*"):
        configfs.disconnect(mapped)
    acl.rmdir()


def _credentials(acl: Path) -> tuple[str, str]:
    """The CHAP name and secret, "" where there is none."""
    name, secret = (configfs.read(acl / "auth" / what) for what in ("userid", "password"))
    return (name if name != _UNSET else "", secret if secret != _UNSET else "")


def _group(iqn: str) -> Path:
    return TARGETS / iqn / "tpgt_1"


def _initiator(export: Export) -> str:
    """The name of the initiator's ACL: the kernel makes names small at login (RFC 7143, 4.2.7)."""
    assert export.initiator is not None
    return export.initiator.lower()


def _address(text: str) -> str:
    """An address in its one form; IPv4 stays IPv4 on a portal that takes both.

    >>> _address("[0:0::1]"), _address("::ffff:10.0.0.5")
    ('::1', '10.0.0.5')
    """
    address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def serial(volume: str) -> str:
    """The serial number of a volume's disk.

    The kernel makes the NAA designator, by which udev and multipath tell disks
    apart, of its first 25 hexadecimal digits (spc_parse_naa_6h_vendor_specific).
    Ids that only differ later would be one disk to them, so a hash comes first.

    >>> serial("v1")
    '3bfc269594ef649228e9a74ba-v1'
    """
    return f"{hashlib.sha256(volume.encode()).hexdigest()[:25]}-{volume}"
