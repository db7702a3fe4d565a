"""The Python client of lunr's API."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from lunr.client.admin import Admin
from lunr.client.groups import Groups
from lunr.client.records import VolumeType
from lunr.client.resources import Backups, Exports, Jobs, Snapshots, Volumes
from lunr.client.retention import Retentions
from lunr.client.schedules import Schedules
from lunr.client.transport import Transport
from lunr.common import ids
from lunr.common.errors import ConfigError


class Client:
    """The client of one account at one API.

    >>> client = Client.from_env()                                  # doctest: +SKIP
    >>> volume = client.volumes.create(size=10, name="data")        # doctest: +SKIP
    >>> client.volumes.wait(volume.id, timeout=60).status           # doctest: +SKIP
    'ACTIVE'

    Threads may share a client. As a context manager it closes its connections at the end.

    Args:
        url: where the API is, such as ``http://127.0.0.1:8080``.
        account: the account whose records the client works with.
        token: the secret of a token of that account, or of an admin.
        timeout: seconds to connect, and seconds in which the server may be silent.
        retries: how often a request that may be repeated is sent again when the API
            can't be reached or is unavailable, with growing pauses (5: 6 seconds in all).

    Raises:
        ConfigError: `url` or `token` can't be one.
        InvalidField: `account` can't be an id.
    """

    def __init__(
        self, url: str, account: str, token: str, timeout: float = 60.0, retries: int = 5
    ) -> None:
        self.account = ids.check(account, "account")
        self._http = Transport(url, token, timeout, retries)
        self.volumes = Volumes(self._http, account)
        self.snapshots = Snapshots(self._http, account)
        self.backups = Backups(self._http, account)
        self.groups = Groups(self._http, account)
        self.exports = Exports(self._http, account)
        self.jobs = Jobs(self._http, account)
        self.schedules = Schedules(self._http, account)
        self.retention = Retentions(self._http, account)
        self.admin = Admin(self._http)

    @classmethod
    def from_env(
        cls, env: Mapping[str, str] | None = None, timeout: float = 60.0, retries: int = 5
    ) -> Self:
        """A client from LUNR_URL, LUNR_ACCOUNT and LUNR_TOKEN in `env` (the process's by default).

        Raises:
            ConfigError: one of them is missing or wrong.
        """
        given = os.environ if env is None else env
        names = ("LUNR_URL", "LUNR_ACCOUNT", "LUNR_TOKEN")
        url, account, token = (given.get(name, "") for name in names)
        if missing := [name for name in names if not given.get(name)]:
            raise ConfigError(
                reason=f"{', '.join(missing)} not set; `lunr up` writes a file `openrc` to source"
            )
        return cls(url, account, token, timeout, retries)

    @property
    def url(self) -> str:
        """Where the API is."""
        return self._http.url

    def volume_types(self) -> Iterator[VolumeType]:
        """The types that volumes can be of."""
        pages = self._http.pages("volume_types", self.account, "volume_types")
        return map(VolumeType.parse, pages)

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.url} account {self.account}>"
