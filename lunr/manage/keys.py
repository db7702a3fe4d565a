"""``lunr-manage key``: the files with keys, and a change of the master key.

The first key of the file writes, the others only read. A change of the key has three steps:
put a new key in front; wait until a full backup of each volume has replaced the old ones; remove
the old key.
"""

from __future__ import annotations

import secrets
from collections import Counter
from pathlib import Path

import click

from lunr.backup.keys import from_config, master_keys
from lunr.backup.keys.derive import KEY_SIZE, derive, master_id
from lunr.backup.repository import catalog
from lunr.backup.stores.from_config import store_options
from lunr.common import errors
from lunr.manage.context import Context, command, show, write_private


class NotAFile(errors.Conflict):
    """[store] key is {source}: change it there, and put the id of the new secret in front."""

    code = "not_a_file"


class NoSuchKey(errors.NotFound):
    """There is no master key {id} in {path}."""

    code = "no_such_key"


class KeyNeeded(errors.Conflict):
    """The master key {id} is needed: {reason}"""

    code = "key_needed"


@click.group()
def key() -> None:
    """Keys, and the change of the master key."""


@key.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def make(file: Path) -> None:
    """Make a random key in FILE, readable by its owner only. A key that is there is kept.

    Keep a copy of the master key somewhere else: without it no backup can be read.
    """
    click.echo(f"{file}: {'made' if make_key(file) else 'kept as it is'}")


def make_key(file: Path) -> bool:
    """Create a key file if it is missing, and return whether it was."""
    if file.exists():
        return False
    write_private(file, master_keys.text([secrets.token_bytes(KEY_SIZE)]))
    return True


def path_of(context: Context) -> Path | None:
    """The file with the master keys; None if they are in Barbican."""
    scheme, _, place = context.conf.store.key.partition(":")
    return Path(place) if scheme == "file" else None


@key.command("list")
@command
def list_(context: Context) -> None:
    """List the master keys, and how many backups need each. The first writes.

    Backups whose key is missing count as `unreadable`.
    """
    keys = from_config.open_master_keys(context.conf)
    uses = _uses(context, keys)
    show(
        {
            "keys": [
                {"id": master_id(master), "writes": number == 0, "backups": uses.pop(master, 0)}
                for number, master in enumerate(keys)
            ],
            "unreadable": uses.total(),
        }
    )


@key.command()
@click.option(
    "--later", is_flag=True, help="It shall not write yet: see `use`. For more than one node."
)
@command
def rotate(context: Context, later: bool) -> None:
    """Put a new master key into the file of [store] key; it writes from the nodes' next start.

    The next backup of each volume is full. With several nodes: rotate --later, copy the file
    to all nodes and restart them, so that all can read what any of them will write; then `use`
    the new key, and copy and restart again.
    """
    path, keys = _file(context)
    new = secrets.token_bytes(KEY_SIZE)
    _write(path, (*keys, new) if later else (new, *keys))
    show({"id": master_id(new), "writes": not later})


@key.command()
@click.argument("id")
@command
def use(context: Context, id: str) -> None:
    """Let the master key ID write, from the nodes' next start."""
    path, keys = _file(context)
    master = _named(path, keys, id)
    _write(path, (master, *(other for other in keys if other != master)))
    show({"id": id, "writes": True})


@key.command()
@click.argument("id")
@command
def drop(context: Context, id: str) -> None:
    """Remove the master key ID from the file, if no backup needs it and it does not write."""
    path, keys = _file(context)
    master = _named(path, keys, id)
    if master == keys[0]:
        raise KeyNeeded(id=id, reason="it writes. Let another key write first.")
    if saves := catalog.running_saves(context.conf.store.url, store_options(context.conf)):
        raise KeyNeeded(id=id, reason=f"backup {saves[0]} is being saved, perhaps with it.")
    count = _uses(context, keys)[master]
    if count:
        raise KeyNeeded(id=id, reason=f"{count} backups can't be read without it.")
    _write(path, tuple(other for other in keys if other != master))
    show({"id": id, "dropped": True})


def _file(context: Context) -> tuple[Path, master_keys.MasterKeys]:
    path = path_of(context)
    if path is None:
        raise NotAFile(source=context.conf.store.key)
    return path, master_keys.load(path)


def _named(path: Path, keys: master_keys.MasterKeys, id: str) -> bytes:
    for master in keys:
        if master_id(master) == id:
            return master
    raise NoSuchKey(id=id, path=path)


def _write(path: Path, keys: master_keys.MasterKeys) -> None:
    write_private(path, master_keys.text(keys))


def _uses(context: Context, keys: master_keys.MasterKeys) -> Counter[bytes | None]:
    """How many backups need each of the master keys; None: a key that is missing.

    Raises:
        errors.LunrError: a root can't be read, so the number is unknown.
    """
    uses: Counter[bytes | None] = Counter()
    known = context.services.records.known()
    options = store_options(context.conf)
    for repository, key_id in catalog.key_ids(context.conf.store.url, options, known):
        names = {derive(master, repository).id: master for master in keys}
        uses[names.get(key_id)] += 1
    return uses
