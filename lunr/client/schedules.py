"""When volumes are backed up. What methods raise, :mod:`lunr.client.collection` says."""

from __future__ import annotations

from collections.abc import Iterator

from lunr.client.collection import Collection
from lunr.client.records import Schedule
from lunr.client.transport import Transport


class _Schedules(Collection[Schedule]):
    """What the schedules of an account and those of all accounts have in common."""

    key, record = "schedules", Schedule

    def update(
        self,
        id: str,
        *,
        every: str | None = None,
        at: str | None = None,
        spread: int | None = None,
        name: str | None = None,
    ) -> Schedule:
        """Change a schedule; with another `every`, what is not given has its default again."""
        body = {"every": every, "at": at, "spread": spread, "name": name}
        return self._request("POST", *self._path(id), body=body)

    def delete(self, id: str) -> None:
        """Delete a schedule. The backups that it made stay."""
        self._http.request("DELETE", *self._path(id))

    def _create(self, **body: str | int | None) -> Schedule:
        return self._request("POST", self._owner, self.key, body=body)


class Schedules(_Schedules):
    """The schedules of an account's volumes; a volume has at most one."""

    def create(
        self,
        volume_id: str,
        every: str,
        *,
        at: str | None = None,
        spread: int | None = None,
        name: str | None = None,
    ) -> Schedule:
        """Have a volume backed up regularly.

        Args:
            every: ``15m``, ``30m``, ``1h``, ``2h``, ``3h``, ``4h``, ``6h``, ``8h``, ``12h``,
                ``1d``, ``1w``; or ``none``: never, whatever the schedule of its type says.
            at: ``HH:MM`` in UTC, for ``1w`` with a day: ``sun 03:30``.
            spread: minutes within which it begins.
            name: what the backups are called.

        Raises:
            Conflict: the volume has a schedule.
        """
        return self._create(volume_id=volume_id, every=every, at=at, spread=spread, name=name)

    def list(
        self,
        *,
        name: str | None = None,
        volume_id: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Schedule]:
        """The volumes' own schedules, newest first; `limit`: at most so many."""
        return self._list(limit, name=name, volume_id=volume_id)

    def of_volume(self, volume_id: str) -> Schedule:
        """The schedule that applies to a volume, its own or its type's, and its last run.

        Raises:
            NotFound: there is none.
        """
        return self._request("GET", self._owner, "volumes", volume_id, "schedule")


class AllSchedules(_Schedules):
    """Every account's schedules, and those of volume types (needs the role admin)."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, "admin")

    def create(
        self,
        volume_type_name: str,
        every: str,
        *,
        at: str | None = None,
        spread: int | None = None,
        name: str | None = None,
    ) -> Schedule:
        """Have the volumes of a type that have no schedule of their own backed up regularly.

        Raises:
            Conflict: the type has a schedule.
        """
        return self._create(
            volume_type_name=volume_type_name, every=every, at=at, spread=spread, name=name
        )

    def list(
        self,
        *,
        name: str | None = None,
        account_id: str | None = None,
        volume_id: str | None = None,
        volume_type_name: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Schedule]:
        """All of them, newest first; `limit`: at most so many."""
        return self._list(
            limit,
            name=name,
            account_id=account_id,
            volume_id=volume_id,
            volume_type_name=volume_type_name,
        )
