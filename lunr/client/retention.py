"""Which backups are kept. What methods raise, :mod:`lunr.client.collection` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lunr.client.records import Retention
from lunr.client.transport import Transport


class Retentions:
    """The rules of an account's volumes, by the volume's id.

    Rules are ``keep_last``, ``keep_hourly``, ``keep_daily``, ``keep_weekly``, ``keep_monthly`` and
    ``keep_yearly``, each with a number; docs/api.md says what they mean.
    """

    def __init__(self, transport: Transport, account: str) -> None:
        self._http = transport
        self._account = account

    def get(self, volume_id: str) -> Retention:
        """The rules of a volume, and what a prune would delete now."""
        return self._request("GET", volume_id, "retention")

    def set(self, volume_id: str, rules: Mapping[str, int]) -> Retention:
        """Replace the rules of a volume; without any all backups are kept."""
        return self._request("PUT", volume_id, "retention", body=rules)

    def reset(self, volume_id: str) -> Retention:
        """Take a volume's own rules away: those of its type apply again."""
        return self._request("DELETE", volume_id, "retention")

    def prune(
        self,
        volume_id: str,
        rules: Mapping[str, int] | None = None,
        *,
        all: bool = False,
        dry_run: bool = False,
    ) -> Retention:
        """Begin to delete the backups of a volume that no rule keeps.

        Args:
            rules: applied instead of the volume's, this time.
            all: also backups that were made by hand.
            dry_run: only answer what would be deleted.
        """
        body = {**(rules or {}), "all": all, "dry_run": dry_run}
        return self._request("POST", volume_id, "prune", body=body)

    def _request(self, method: str, *path: str, **options: Any) -> Retention:
        answer = self._http.request(method, self._account, "volumes", *path, **options)
        return Retention.parse(answer)
