"""A service with nodes whose agents the test plays, through the same services and HTTP."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import event, select
from webob import Request, Response

from lunr.api.app import wrap
from lunr.api.context import Settings
from lunr.api.middleware.auth import OwnTokens
from lunr.api.secret_box import SecretBox
from lunr.api.services import JOB_TYPES, Services
from lunr.api.services.pagination import Query
from lunr.common import errors
from lunr.common.units import GIB
from lunr.db import migrate
from lunr.db.models import Volume
from lunr.db.session import Database

ALL = JOB_TYPES.names


class World:
    """Services over a fresh database at `url`, one account `acme` and the node `n1` of 100 GiB."""

    def __init__(self, folder: Path, url: str | None = None, **settings: Any) -> None:
        self.url = url or f"sqlite:///{folder}/lunr.db"
        self.key = folder / "secret.key"
        self.key.touch(mode=0o600)
        self.key.write_text("k" * 44)
        self.settings = replace(Settings(retry_delay=0), **settings)
        if self.url.startswith("sqlite:///"):
            Path(self.url.removeprefix("sqlite:///")).write_bytes(_migrated())
        else:
            migrate.upgrade(self.url)
        self.services = self.another()
        self.services.accounts.create("acme")
        self.token = self.services.tokens.create("acme")["token"]
        self.add_node("n1")
        self.app = wrap(self.services, [OwnTokens(self.services.tokens)])

    def another(self) -> Services:
        """Services of their own over the same database, as another process has them."""
        database = Database(self.url)
        if database.sqlite:  # these tests cut no power, and the disk is shared
            event.listen(database.engine, "connect", _without_fsync)
        return Services(database, self.settings, SecretBox(str(self.key)))

    def add_node(self, id: str, gib: int = 100, **settings: Any) -> str:
        """Make a node with a heartbeat; its token."""
        token: str = self.services.nodes.create(id, **settings)["token"]
        self.beat(id, gib)
        return token

    def beat(self, id: str, gib: int = 100, **told: Any) -> Any:
        room = {"capacity_bytes": gib * GIB, "free_bytes": gib * GIB}
        return self.services.nodes.heartbeat(id, {"portal": "127.0.0.1:3260", **room, **told})

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = "",
        **headers: str,
    ) -> Response:
        """Send a request; bytes are sent as they are, everything else as JSON."""
        request = Request.blank(path, method=method)
        token = self.token if token == "" else token
        if token is not None:
            request.headers["X-Auth-Token"] = token
        if body is not None:
            request.content_type = "application/json"
            request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.headers.update(headers)
        return request.get_response(self.app)

    def volume(self, id: str = "v1", **request: Any) -> Any:
        """An ACTIVE volume."""
        self.services.volumes.create("acme", {"size": 1, **request}, id)
        self.work()
        volume = self.services.volumes.get("acme", id)
        assert volume["status"] == "ACTIVE"
        return volume

    def backup(self, id: str = "b1", volume: str = "v1", **request: Any) -> Any:
        """An AVAILABLE backup."""
        self.services.backups.create("acme", volume, request, id)
        self.work()
        backup = self.services.backups.get("acme", id)
        assert backup["status"] == "AVAILABLE"
        return backup

    def claim(self, node: str = "n1", kinds: Sequence[str] = ALL) -> Any:
        return self.services.claims.claim(node, kinds)

    def work(self, node: str = "n1", kinds: Sequence[str] = ALL) -> list[str]:
        """Do all that the node may do, well; the kinds of jobs that were done."""
        done = []
        while (job := self.claim(node, kinds)) is not None:
            self.done(job, node)
            done.append(job["kind"])
        return done

    def restored(self, id: str = "r1", backup: str = "b1", **request: Any) -> Any:
        """A volume from a backup that can be used, and that nobody has begun to fill."""
        self.services.volumes.create("acme", {"backup": backup, **request}, id)
        self.work(kinds=["volume.restore"])
        volume = self.services.volumes.get("acme", id)
        assert (volume["status"], volume["usable"]) == ("RESTORING", True)
        return volume

    def fill_up(self) -> None:
        """Have all filled that is not full, and do all that is to be done."""
        with self.services.context.db.read() as connection:
            left = connection.scalars(
                select(Volume.id).where(Volume.status == "RESTORING", Volume.usable)
            ).all()
        for id in left:
            self.services.volumes.update("acme", id, {"fill": "eager"})
        while any(self.work(node["id"]) for node in self.services.nodes.list(Query())["nodes"]):
            pass

    def done(self, job: Any, node: str = "n1", **result: Any) -> None:
        self.services.claims.report(node, job["id"], job["lease"], "DONE", result=result)

    def fail(self, job: Any, node: str = "n1", retry: bool = False, reason: str = "No.") -> None:
        error = {"code": "test", "reason": reason, "retry": retry}
        self.services.claims.report(node, job["id"], job["lease"], "FAILED", error=error)

    def close(self) -> None:
        self.services.close()


@functools.cache
def _migrated() -> bytes:
    """An SQLite file after all migrations, which take longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lunr.db"
        migrate.upgrade(f"sqlite:///{file}")
        assert os.listdir(folder) == [file.name], "its log is in it"
        return file.read_bytes()


def _without_fsync(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous = OFF")


@dataclass(frozen=True)
class Outcome:
    """What a call of a race gave: a value, or the error's class."""

    value: Any = None
    error: type[errors.LunrError] | None = None


def outcome(function: Any, *args: Any, **kwargs: Any) -> Outcome:
    try:
        return Outcome(value=function(*args, **kwargs))
    except errors.LunrError as error:
        return Outcome(error=type(error))
