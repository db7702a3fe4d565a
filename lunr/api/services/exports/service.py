"""Exports: how a volume is reached over iSCSI."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.jobs.job_type import JobType
from lunr.api.secret_box import chap_secret
from lunr.api.services.exports.job_types import CreateExport, DeleteExport
from lunr.api.services.exports.node_exports import LUN
from lunr.api.services.pagination import Listing, Query
from lunr.api.services.volumes import service as volumes
from lunr.common import errors, times
from lunr.common.states import Export as State
from lunr.db.models import Export, Node, columns
from lunr.db.transitions import move

_ROWS = select(*columns(Export), Node.portal.label("portal")).outerjoin_from(
    Export, Node, Node.id == Export.node_id
)


class Exports:
    """What callers can do with exports."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, query: Query) -> Any:
        """A page of exports, without the secrets."""
        listing = Listing(
            "exports",
            Export,
            _ROWS,
            lambda row: self._view(row, secrets=False),
            (Export.created_at, Export.volume_id),
            Export.volume_id,
        )
        with self._context.db.read() as connection:
            return listing.page(connection, query, self._context.settings.page_limit)

    def get(self, account_id: str, volume_id: str) -> Any:
        """The export of the volume, with what its initiator needs and the sessions now connected.

        Raises:
            errors.NotFound: the account has no such volume, or it is not exported.
        """
        with self._context.db.read() as connection:
            row = connection.execute(
                _ROWS.where(
                    Export.volume_id == volume_id,
                    Export.account_id == account_id,
                    Export.status != "DELETED",
                )
            ).one_or_none()
        if row is None:
            raise errors.NotFound(kind="export of volume", id=volume_id)
        return self._view(row)

    def create(
        self, account_id: str, volume_id: str, initiator: str | None, ip: str | None
    ) -> tuple[Any, bool]:
        """Export a volume to an initiator; the second of the answer is False if it was already.

        Args:
            initiator: its IQN.
            ip: its address. One of the two is needed; with both, both must match.

        Raises:
            errors.InvalidField: neither is given.
            errors.NotFound: the account has no such volume.
            errors.WrongState, errors.InUse: it can't be used yet, or a job is at work on it.
            errors.Conflict: it is exported to another, or being detached.
        """
        if not initiator and not ip:
            raise errors.InvalidField(
                field="initiator", reason="the initiator's IQN, its ip, or both are needed"
            )
        made = self._context.db.write(self._create, account_id, volume_id, initiator, ip)
        return self.get(account_id, volume_id), made

    def _create(
        self,
        session: Session,
        account_id: str,
        volume_id: str,
        initiator: str | None,
        ip: str | None,
    ) -> bool:
        volume = volumes.lock(session, account_id, volume_id)
        export = session.get(Export, volume_id)
        if export is not None and export.status in (State.ATTACHING, State.ATTACHED):
            if (export.initiator, export.ip) == (initiator, ip):
                return False
            raise errors.InUse(
                kind="volume", id=volume_id, reason="it is exported to another initiator"
            )
        volumes.require_usable(volume, "export it")
        values: dict[str, Any] = {
            "initiator": initiator,
            "ip": ip,
            "auth_username": chap_secret(),
            "auth_secret": self._context.secret_box.seal(chap_secret()),
            "sessions": [],
        }
        if export is None:
            export = Export(
                volume_id=volume_id,
                account_id=account_id,
                node_id=volume.node_id,
                target_iqn=f"{self._context.settings.iqn_prefix}:{volume_id}",
                **values,
            )
            session.add(export)
        else:
            move(
                session,
                Export,
                volume_id,
                State.ATTACHING,
                "export it",
                reason=None,
                created_at=times.now(),
                deleted_at=None,
                **values,
            )
        self._queue(session, CreateExport, export)
        return True

    def delete(self, account_id: str, volume_id: str, force: bool = False) -> Any:
        """Detach a volume.

        Args:
            force: cut off an initiator that is still logged in.

        Raises:
            errors.NotFound: the account has no such volume, or it is not exported.
            errors.WrongState: it is being attached or detached.
        """
        self._context.db.write(self._delete, account_id, volume_id, force)
        return self.get(account_id, volume_id)

    def _delete(self, session: Session, account_id: str, volume_id: str, force: bool) -> None:
        volumes.lock(session, account_id, volume_id)
        export = session.get(Export, volume_id)
        if export is None or export.status == State.DELETED:
            raise errors.NotFound(kind="export of volume", id=volume_id)
        came_from = export.status
        if came_from == State.ATTACHING and export.job_id is not None:
            queue.cancel_queued(session, export.job_id)
            came_from = State.ERROR.value
        move(session, Export, volume_id, State.DETACHING, "detach it", reason=None)
        self._queue(session, DeleteExport, export, {"force": force, "from": came_from})

    def _queue(
        self,
        session: Session,
        job_type: type[JobType],
        export: Export,
        data: dict[str, Any] | None = None,
    ) -> None:
        job = queue.enqueue(
            session,
            self._context,
            job_type,
            account_id=export.account_id,
            subject_id=export.volume_id,
            volume_id=export.volume_id,
            node_id=export.node_id,
            data=data,
        )
        export.job_id = job.id
        session.flush()

    def _view(self, row: Any, secrets: bool = True) -> Any:
        view = {
            "volume_id": row.volume_id,
            "account_id": row.account_id,
            "status": row.status,
            "reason": row.reason,
            "initiator": row.initiator,
            "ip": row.ip,
            "target_iqn": row.target_iqn,
            "target_portal": row.portal,
            "target_lun": LUN,
            "auth_method": "CHAP",
            "auth_username": row.auth_username,
            "sessions": row.sessions,
            "job_id": row.job_id,
            "created_at": times.iso(row.created_at),
            "updated_at": times.iso(row.updated_at),
        }
        if secrets:
            view["auth_password"] = row.auth_secret and self._context.secret_box.open(
                row.auth_secret
            )
        return view
