"""``lunr-manage rebuild`` and ``lunr-manage record``: records of backups from the store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

import click

from lunr.api.services.backups.records import StoredBackup
from lunr.backup.format.roots import Root
from lunr.backup.keys import from_config
from lunr.backup.open import open_repository
from lunr.backup.repository import catalog
from lunr.backup.stores.from_config import store_options
from lunr.common import errors, ids, strict_json
from lunr.common.units import GIB
from lunr.manage.context import Context, command, show


class NotARecord(errors.BadRequest):
    """It is not a record as `record export` prints it: {reason}"""

    code = "not_a_record"


@click.command()
@click.option(
    "--from-store", "_", is_flag=True, required=True, help="Read the roots in [store] url."
)
@click.option("--account", help="Of this account only.")
@command
def rebuild(context: Context, _: bool, account: str | None) -> None:
    """Make the records of all backups that are in the store and in no record.

    For a database that is lost or too old: every root in the store describes one backup.
    Missing accounts are made, with the default quotas; volumes are not, but new ones
    can be made from the backups. Names and metadata are not in the store. Existing records stay
    as they are, so it can be repeated. The hidden backup of a cross-node copy is recorded as such,
    and the housekeeper deletes it when no volume needs it. Backups that can't be recorded are
    printed with the reason, and the exit code is 1.
    """
    made = existing = 0
    failed: list[dict[str, Any]] = []
    for repository, backup_id, root in _roots(context, account):
        try:
            if isinstance(root, errors.LunrError):
                raise root
            context.services.accounts.ensure(repository)
            if context.services.records.put(_stored(repository, root)):
                made += 1
            else:
                existing += 1
        except errors.Unavailable:
            raise
        except errors.LunrError as error:
            failed.append({"account_id": repository, "id": backup_id, **error.as_dict()})
    show({"made": made, "there": existing, "failed": failed})
    if failed:
        raise SystemExit(1)


def _roots(
    context: Context, account: str | None
) -> Iterator[tuple[str, str, Root | errors.LunrError]]:
    conf = context.conf
    master_keys = from_config.open_master_keys(conf)
    options = store_options(conf)
    return catalog.backups(conf.store.url, options, master_keys, account)


def _stored(account_id: str, root: Root, **fields: Any) -> StoredBackup:
    """The backup of `root`, with the further `fields` of its record."""
    created = datetime.fromisoformat(root.created_at).astimezone(UTC).replace(tzinfo=None)
    did = root.statistics
    return StoredBackup(
        id=root.backup_id,
        account_id=account_id,
        volume_id=root.volume_id,
        parent_id=root.parent_id,
        size=-(-root.size_bytes // GIB),
        created_at=created,
        bytes_read=did.bytes_read,
        bytes_stored=did.bytes_stored,
        objects_stored=did.objects_stored,
        group_id=root.consistency_group,
        internal=root.internal,
        **fields,
    )


@click.group()
def record() -> None:
    """Records of single backups, to carry them to another lunr with the same store and key."""


@record.command("export")
@click.argument("id")
@command
def export(context: Context, id: str) -> None:
    """Print the record of the backup ID as JSON."""
    show(context.services.records.export(id))


@record.command("import")
@click.argument("file", type=click.File())
@command
def import_(context: Context, file: TextIO) -> None:
    """Make the record that FILE (-: standard input) holds. Its backup must be in the store."""
    fields = _parse(file)
    conf = context.conf
    master_keys = from_config.open_master_keys(conf)
    options = store_options(conf)
    with open_repository(conf.store.url, fields["account_id"], master_keys, options) as repository:
        root = repository.load_root(fields.pop("id"))
    context.services.accounts.ensure(fields["account_id"])
    stored = _stored(fields.pop("account_id"), root, **fields)
    show({"id": stored.id, "made": context.services.records.put(stored)})


def _parse(file: TextIO) -> dict[str, Any]:
    try:
        fields = strict_json.load_object(file.read().encode())
        id, account_id = fields["id"], fields["account_id"]
        name, metadata = fields.get("name", ""), fields.get("metadata", {})
        protected, schedule_id = fields.get("protected", False), fields.get("schedule_id")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NotARecord(reason=f"{type(error).__name__}: {error}.") from error
    ids.check(id)
    ids.check(account_id, "account_id")
    texts = [name, *metadata, *metadata.values()] if isinstance(metadata, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise NotARecord(reason="name and metadata are strings.")
    if not isinstance(protected, bool):
        raise NotARecord(reason="protected is true or false.")
    if schedule_id is not None:
        ids.check(schedule_id, "schedule_id")
    return {
        "id": id,
        "account_id": account_id,
        "name": name,
        "metadata": metadata,
        "protected": protected,
        "schedule_id": schedule_id,
    }
