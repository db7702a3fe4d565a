"""``lunr live``: backup of running virtual machines."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from lunr.backup.keys import master_keys
from lunr.backup.open import open_repository
from lunr.backup.read.restore import restore as restore_backup
from lunr.backup.repository.repository import Repository
from lunr.client.cli.context import ClientContext
from lunr.client.cli.options import PAIR, as_dict
from lunr.common import ids, log, signals, units
from lunr.common.errors import LunrError
from lunr.common.help import HELP
from lunr.live.backup import groups
from lunr.live.backup.announcements import Service
from lunr.live.backup.backup import Options
from lunr.live.backup.backup import backup as back_up
from lunr.live.backup.groups import Group
from lunr.live.qemu import command_line
from lunr.live.qemu import libvirt as domains
from lunr.live.qemu.qmp import Monitor
from lunr.live.start import instant_start


@click.group(context_settings=HELP)
def live() -> None:
    """Back up running virtual machines (QEMU), all disks at one instant.

    The first backup reads the data of the disks, the later ones only changes. They are
    ordinary backups, one a disk, and one more that makes them a group.

    \b
      qemu-system-x86_64 -name web -qmp unix:/run/web.qmp,server=on,wait=off …
      export LUNR_STORE=files:/srv/backups
      lunr live backup --qmp /run/web.qmp
      lunr live list
      lunr live restore web-20261123T202411000000Z /srv/restored
    """


@dataclass(frozen=True)
class GroupStore:
    """The repository of the backup groups, and the service that registers them, or None."""

    repository: Repository
    service: Service | None


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of `live`, with the common options; it gets the group store first."""

    @live.command(function.__name__.strip("_"), help=function.__doc__)
    @click.option(
        "--store", envvar="LUNR_STORE", required=True, help="files:/PATH or swift:PREFIX."
    )
    @click.option(
        "--repository",
        help="Whose backups; no service is told.  [the account of the service, or default]",
    )
    @click.option(
        "--key-file",
        envvar="LUNR_KEY_FILE",
        type=click.Path(path_type=Path),
        help="The master keys, one a line; mode 0600.  [a public one]",
    )
    @functools.wraps(function)
    def command(store: str, repository: str | None, key_file: Path | None, **rest: Any) -> None:
        if not logging.getLogger().handlers:
            log.setup("WARNING")
        cancel = threading.Event()
        try:
            service = None if repository is not None else _service()
            name = "default" if service is None else service.account
            name = ids.check(repository or name, "--repository")
            keys = master_keys.load(key_file)
            with open_repository(store, name, keys, cancel=cancel) as opened:
                try:
                    function(GroupStore(opened, service), **rest)
                finally:
                    cancel.set()
        except LunrError as error:
            raise click.ClickException(str(error)) from error

    return command


def _service() -> Service | None:
    """The service that the options of `lunr`, an openrc file or the environment name, or None."""
    ctx = click.get_current_context()
    context = ctx.find_object(ClientContext)
    if context is None:  # not below `lunr`
        context = ClientContext(None, None, None)
        ctx.call_on_close(context.close)
    return Service(context.client) if context.has_service else None


_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@_command
@click.option(
    "--qmp",
    type=click.Path(path_type=Path),
    help="A QMP socket of the machine, which no other program uses.",
)
@click.option("--libvirt", metavar="DOMAIN", help="A domain of libvirt with such a socket.")
@click.option("--vm", help="What to call the machine.  [default: its -name]")
@click.option("--disks", help="Only these, as a,b: the ids of their devices.")
@click.option(
    "--scratch",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Options.scratch,
    show_default=True,
    help="Where there is room for what the guest overwrites meanwhile.",
)
@click.option(
    "--scratch-limit",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Give the backup up when that takes more MiB there.  [no limit]",
)
@click.option(
    "--scratch-reserve",
    type=click.IntRange(min=0),
    metavar="MIB",
    help="Give the backup up when less MiB would be free there.  [5 % of it, at least 1024]",
)
@click.option(
    "--agent",
    type=click.Path(path_type=Path),
    help="The socket of the guest's agent (qemu-ga): freeze the file systems for the cut.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 32),
    default=4,
    show_default=True,
    help="Requests to the store at once.",
)
@click.option(
    "--volume",
    "volumes",
    type=PAIR,
    metavar="DISK=ID",
    multiple=True,
    callback=lambda _ctx, _param, pairs: as_dict(pairs),
    help="This disk is that volume of the service; can be given again.  [as its iSCSI name says]",
)
@_as_json
def backup(
    place: GroupStore,
    qmp: Path | None,
    libvirt: str | None,
    vm: str | None,
    disks: str | None,
    scratch: Path,
    scratch_limit: int | None,
    scratch_reserve: int | None,
    agent: Path | None,
    concurrency: int,
    volumes: dict[str, str] | None,
    as_json: bool,
) -> None:
    """Back up a running machine: all of its disks are in the store then, or none.

    Whatever happens to the backup, the machine goes on.
    """
    options = Options(
        machine=None if vm is None else ids.check(vm, "--vm"),
        disks=None if disks is None else disks.split(","),
        scratch=scratch,
        scratch_limit=(scratch_limit or 0) * units.MIB,
        scratch_reserve=None if scratch_reserve is None else scratch_reserve * units.MIB,
        agent=agent,
        concurrency=concurrency,
        service=place.service,
        volumes=volumes or {},
    )
    if (qmp is None) == (libvirt is None):
        raise click.UsageError("Give --qmp or --libvirt.")
    with Monitor.open(qmp or domains.socket_of(str(libvirt))) as monitor:
        group = back_up(place.repository, monitor, options)
    if as_json:
        click.echo(json.dumps(asdict(group)))
        return
    for line in _summary(group):
        click.echo(line)


def _summary(group: Group) -> list[str]:
    """The lines about a new group for a person."""
    lines = []
    for member in group.members:
        why = f" ({member.reason.rstrip('.')})" if member.reason else ""
        lines.append(
            f"{member.disk}: {member.way}{why}, read {units.human(member.bytes_read)}, "
            f"stored {units.human(member.bytes_stored)}, {member.seconds:.1f} s."
        )
    stall = f"The machine stood still for {group.stall_seconds * 1000:.1f} ms."
    frozen = "" if group.frozen is None else f" {group.frozen} file systems were frozen."
    return [*lines, f"Saved {group.group_id}. {stall}{frozen}"]


@_command
@click.option("--vm", help="Only of this machine.")
@_as_json
def list_(place: GroupStore, vm: str | None, as_json: bool) -> None:
    """List the groups, newest first, and the remains of killed backups."""
    complete = groups.listed(place.repository, vm)
    unfinished = groups.unfinished(place.repository, vm)
    if as_json:
        click.echo(
            json.dumps({"groups": [asdict(group) for group in complete], "unfinished": unfinished})
        )
        return
    for group in complete:
        size = units.human(sum(member.size_bytes for member in group.members))
        stored = units.human(sum(member.bytes_stored for member in group.members))
        disks = ", ".join(f"{member.disk} {member.way}" for member in group.members)
        click.echo(f"{group.group_id}  {size}  stored {stored}  {disks}")
    for group_id, members in unfinished.items():
        click.echo(f"{group_id}  unfinished: {', '.join(members)}")


@_command
@click.argument("group_id", metavar="GROUP")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@_as_json
def restore(place: GroupStore, group_id: str, folder: Path, as_json: bool) -> None:
    """Restore all disks of GROUP to FOLDER, as DISK.raw each.

    The folder is made when there is none. A file that is there is not overwritten. They get
    their names when all are whole: a restore that was killed can be done again.
    """
    group = groups.load(place.repository, ids.check(group_id, "GROUP"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = {member: groups.restore_path(folder, member) for member in group.members}
    for path in paths.values():
        if path.exists():
            raise click.ClickException(
                f"{path} is there already: move it away, or name another folder."
            )
    partial = {member: path.with_suffix(".partial") for member, path in paths.items()}
    for member, path in partial.items():
        path.unlink(missing_ok=True)  # of a killed restore
        restore_backup(place.repository, member.backup_id, path, create=True)
    for member, path in partial.items():
        path.rename(paths[member])
    done = {member.disk: str(path) for member, path in paths.items()}
    lines = [f"{disk}: {path}" for disk, path in done.items()]
    click.echo(json.dumps({"disks": done}) if as_json else "\n".join(lines))


@_command
@click.argument("group_id", metavar="GROUP")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--qmp",
    type=click.Path(path_type=Path),
    help="The QMP socket that the machine will have: as soon as it is there, it is told to bring "
    "all of its disks, and the command ends when it has.",
)
def start(place: GroupStore, group_id: str, folder: Path, qmp: Path | None) -> None:
    """Have the disks of GROUP in FOLDER at once, to start the machine from.

    Each is a qcow2 file over the backup, which is fetched as it is read. The command line for
    QEMU is printed, as far as the group tells it, and the disks are there until Ctrl-C and nobody
    uses them, or with --qmp until they are filled. Only root can do it. A second start in the
    same folder goes on with the same disks. A service that knows of the group keeps it meanwhile.
    """
    group = groups.load(place.repository, ids.check(group_id, "GROUP"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop = threading.Event()
    signals.on_signal(stop.set)
    with contextlib.ExitStack() as stack:
        stack.enter_context(instant_start.protected_backups(place.service, group, folder))
        disks = [
            stack.enter_context(instant_start.Disk(place.repository, member, folder.resolve()))
            for member in group.members
        ]
        click.echo(command_line.command_line(group, {disk.name: disk.path for disk in disks}))
        try:
            if qmp is not None and _fill(qmp, disks, stop):
                click.echo("All disks are filled: they need nothing of lunr any more.")
                stop.set()
        except Exception as error:  # a machine may still use the disks
            click.echo(f"{error} The disks stay until Ctrl-C and nobody uses them.", err=True)
            raise
        finally:
            instant_start.wait_until_unused(disks, stop)


def _fill(qmp: Path, disks: Sequence[instant_start.Disk], stop: threading.Event) -> bool:
    """Wait for the machine and fill its disks; return whether they are full."""
    monitor = instant_start.wait_for(qmp, stop)
    if monitor is not None:
        with monitor:
            instant_start.fill(monitor, disks, stop)
    return not stop.is_set()


@_command
@click.argument("group_id", metavar="GROUP")
def delete(place: GroupStore, group_id: str) -> None:
    """Delete GROUP or its remains. `lunr engine collect` frees the room."""
    ids.check(group_id, "GROUP")
    if place.service is not None and place.service.delete(group_id):
        click.echo(f"{group_id} is being deleted.")
        return
    groups.delete(place.repository, group_id)
    click.echo(f"Deleted {group_id}.")


if __name__ == "__main__":
    live(prog_name="lunr live")
