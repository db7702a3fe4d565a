"""The configuration of ``lunr-live``: TOML, a table for store and service and one a machine."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from lunr.common import ids
from lunr.common.errors import ConfigError, LunrError

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """A virtual machine to back up.

    Attributes:
        name: the start of the ids of its backups.
        qmp: a QMP socket that only lunr uses.
        libvirt: or else a domain of libvirt that has such a socket.
        every: seconds from one backup to the next.
        keep: how many groups are kept; the oldest are deleted first. 0: all.
        disks: the disks to back up; empty: all.
        scratch: a folder with room for the data that the guest overwrites during a backup.
        scratch_limit: the most MiB that a backup may take there; above, it is given up. 0: no
            limit.
        scratch_reserve: the MiB that must stay free there; below, the backup is given up. -1: a
            twentieth of it, at least 1024.
        agent: the socket of the guest's agent, which freezes file systems; "": none.
    """

    name: str
    qmp: str = ""
    libvirt: str = ""
    every: int = 3600
    keep: int = 0
    disks: list[str] = field(default_factory=list)
    scratch: str = "/var/tmp"  # noqa: S108 - the files there have no names
    scratch_limit: int = 0
    scratch_reserve: int = -1
    agent: str = ""


@dataclass(frozen=True)
class Store:
    """The store of the backups.

    Attributes:
        url: files:/PATH or swift:PREFIX, with ST_* or OS_* in the environment.
        repository: its repository; "": the service's account, or without a service "default".
        key_file: the master keys, mode 0600; "": a public one.
    """

    url: str
    repository: str = ""
    key_file: str = ""


@dataclass(frozen=True)
class Service:
    """The lunr service that registers the backups.

    Attributes:
        url: the API's.
        account: the account of the backups.
        token_file: the file with the secret of a token of the account, mode 0600.
    """

    url: str
    account: str
    token_file: str


@dataclass(frozen=True)
class Settings:
    """The whole configuration; without a service the backups are only in the store."""

    store: Store
    machines: tuple[Machine, ...]
    service: Service | None = None

    @property
    def repository(self) -> str:
        """The repository of the backups."""
        return self.service.account if self.service else self.store.repository or "default"


def load(path: Path) -> Settings:
    """The settings in the file `path`.

    Raises:
        ConfigError: it can't be read, or a value in it can't be used.
    """
    try:
        return parse(tomllib.loads(path.read_text()))
    except (OSError, ValueError, LunrError) as error:
        reason = error.fields.get("reason") if isinstance(error, LunrError) else error
        raise ConfigError(reason=f"{path}: {reason}") from error


def parse(table: Mapping[str, Any]) -> Settings:
    """The settings in a TOML document.

    Raises:
        ConfigError: a value in it can't be used.
    """
    unknown = sorted(table.keys() - {"store", "service", "machine"})
    if unknown:
        raise ConfigError(reason=f"{unknown[0]}: there are [store], [service] and [[machine]].")
    store = _table(Store, table.get("store", {}), "[store]")
    service = _table(Service, table["service"], "[service]") if "service" in table else None
    if service is not None and store.repository not in ("", service.account):
        raise ConfigError(reason="[store] repository is the account of [service], or left out.")
    given = table.get("machine", [])
    if not isinstance(given, list) or not given:
        raise ConfigError(reason="there is no [[machine]].")
    machines = tuple(_table(Machine, entry, f"[[machine]] {n}") for n, entry in enumerate(given, 1))
    for machine in machines:
        _check_id(machine.name, "[[machine]] name")
        if bool(machine.qmp) == bool(machine.libvirt):
            raise ConfigError(reason=f"{machine.name}: there is one of qmp and libvirt.")
        if machine.every < 1 or machine.keep < 0 or machine.scratch_limit < 0:
            reason = f"{machine.name}: every is 1 or more, keep and scratch_limit 0 or more."
            raise ConfigError(reason=reason)
        if machine.scratch_reserve < -1:
            raise ConfigError(reason=f"{machine.name}: scratch_reserve is -1 or more.")
    if len({machine.name for machine in machines}) < len(machines):
        raise ConfigError(reason="two machines have the same name.")
    settings = Settings(store, machines, service)
    _check_id(settings.repository, "[service] account" if service else "[store] repository")
    return settings


def _check_id(value: str, where: str) -> None:
    if not ids.is_valid(value):
        raise ConfigError(reason=f"{where}: {value!r} is no id of letters, digits, '-' and '_'.")


_KINDS = {"str": str, "int": int, "list[str]": list}


def _table(kind: type[T], given: object, where: str) -> T:
    """`given` as a `kind` of the dataclasses above.

    Raises:
        ConfigError: a field is missing, unknown, or of another type.
    """
    known = {option.name: _KINDS[str(option.type)] for option in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(given, dict):
        raise ConfigError(reason=f"{where} is a table.")
    for name, value in given.items():
        if name not in known:
            raise ConfigError(reason=f"{where}: {name} is not one of {', '.join(known)}.")
        right = type(value) is known[name]
        if not right or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            raise ConfigError(reason=f"{where}: {name} can't be {value!r}.")
    try:
        return kind(**given)
    except TypeError as error:
        raise ConfigError(reason=f"{where}: {error}.") from error
