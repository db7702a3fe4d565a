"""``lunr export``."""

from __future__ import annotations

import shlex

import click

from lunr.client.cli.context import ClientContext
from lunr.client.cli.nouns import Noun
from lunr.client.cli.options import (
    ID,
    confirm,
    json_option,
    limit_option,
    timeout_option,
    wait_options,
    yes_option,
)
from lunr.client.cli.output import escape, print_record
from lunr.client.cli.progress import show_progress, wait_ready
from lunr.client.records import Export

_SECRET = ("auth_password",)


@click.group()
def export() -> None:
    """Export volumes by iSCSI, to one initiator each.

    \b
    Examples:
      lunr export create VOLUME --ip 10.0.0.5
      lunr export show VOLUME
      lunr export delete VOLUME
    """


Noun(export, Export, lambda client: client.exports).add_list(
    "List every account's exports (needs the role admin).",
    lambda client: client.admin.exports,
    click.option("--status", help="Only in this state, such as ATTACHED."),
    limit_option,
)


@export.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@click.option("--show-secret", is_flag=True, help="Show the CHAP password too.")
@json_option
@click.pass_obj
def show(context: ClientContext, volume_id: str, show_secret: bool, as_json: bool) -> None:
    """Show a volume's export, who is logged in, and how to log in.

    JSON holds the CHAP password.
    """
    _print(context.client.exports.get(volume_id), show_secret, as_json)


@export.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@click.pass_obj
def password(context: ClientContext, volume_id: str) -> None:
    """Print the CHAP password of a volume's export, and nothing else."""
    click.echo(context.client.exports.get(volume_id).auth_password or "")


@export.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@click.option("--initiator", metavar="IQN", help="Only an initiator of this name may log in.")
@click.option("--ip", metavar="ADDRESS", help="Only from this address.")
@click.option("--show-secret", is_flag=True, help="Show the CHAP password too.")
@wait_options
@json_option
@click.pass_obj
def create(
    context: ClientContext,
    volume_id: str,
    initiator: str | None,
    ip: str | None,
    show_secret: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Export a volume to the initiator with this name, address, or both.

    An initiator's name is in its /etc/iscsi/initiatorname.iscsi.
    """
    if initiator is None and ip is None:
        raise click.UsageError("Give --initiator, --ip or both: who may log in?")
    exports = context.client.exports
    record = exports.create(volume_id, initiator=initiator, ip=ip)
    if wait:
        record = wait_ready(exports, "export", volume_id, timeout)
    _print(record, show_secret, as_json)


@export.command()
@click.argument("volume_id", metavar="VOLUME", type=ID)
@click.option("--force", is_flag=True, help="Also while an initiator is logged in.")
@yes_option
@wait_options
@json_option
@click.pass_obj
def delete(
    context: ClientContext,
    volume_id: str,
    force: bool,
    yes: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """End a volume's export."""
    if force:
        confirm(f"Take volume {volume_id} away from an initiator that is logged in?", yes)
    else:
        confirm(f"End the export of volume {volume_id}?", yes)
    exports = context.client.exports
    record = exports.delete(volume_id, force=force)
    if wait:
        show_progress(
            f"export of {volume_id}",
            lambda progress: exports.wait_deleted(volume_id, timeout=timeout, progress=progress),
            f"lunr export show {volume_id}",
        )
    if as_json:
        print_record(record, as_json)
    else:
        click.echo(f"the export of {volume_id} is {'gone' if wait else 'being ended'}")


@export.command("wait")
@click.argument("volume_id", metavar="VOLUME", type=ID)
@timeout_option
@json_option
@click.pass_obj
def wait_(context: ClientContext, volume_id: str, timeout: float | None, as_json: bool) -> None:
    """Wait until a volume's export is ATTACHED."""
    _print(wait_ready(context.client.exports, "export", volume_id, timeout), False, as_json)


def _print(record: Export, show_secret: bool, as_json: bool) -> None:
    print_record(record, as_json, hide=() if show_secret else _SECRET)
    if not as_json and record.status == "ATTACHED":
        click.echo(f"\n{format_login(record)}")


def format_login(record: Export) -> str:
    """Lines for bash that log in to an export; they fetch the password, and don't hold it."""
    iqn, portal, user, volume = (
        shlex.quote(escape(text))
        for text in (
            record.target_iqn,
            record.target_portal,
            record.auth_username or "",
            record.volume_id,
        )
    )
    node = f"iscsiadm -m node -T {iqn} -p {portal}"
    options = [
        "driver=iscsi",
        "transport=tcp",
        f"portal={portal}",
        f"target={iqn}",
        f"lun={record.target_lun}",
    ]
    if record.initiator:
        options.append(f"initiator-name={shlex.quote(escape(record.initiator))}")
    secret = ""
    steps = [f"{node} -o new"]
    if record.auth_method:
        settings = {
            "authmethod": escape(record.auth_method),
            "username": user,
            "password": f'"$(lunr export password {volume})"',
        }
        steps += [f"{node} -o update -n node.session.auth.{k} -v {v}" for k, v in settings.items()]
        secret = f"--object secret,id=chap,file=<(lunr export password {volume} | tr -d '\\n') "
        options += [f"user={user}", "password-secret=chap"]
    steps.append(f"{node} --login")
    lines = [
        "# With the kernel's initiator (open-iscsi), as root:",
        *steps,
        "# With QEMU's own:",
        f"qemu-img info {secret}--image-opts {','.join(options)}",
    ]
    return "\n".join(lines)
