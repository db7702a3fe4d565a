"""What a storage node's agent asks and tells."""

from __future__ import annotations

import errno
import socket

from lunr.api.jobs.claims import MAX_WAIT
from lunr.api.jobs.job_types import KINDS
from lunr.api.request import Call, Reply
from lunr.api.schema import (
    MAX_BYTES,
    Anything,
    Boolean,
    Choice,
    Fields,
    Id,
    Integer,
    Items,
    Mapped,
    Prose,
    Schema,
    Text,
)

#: More volumes than a node has.
_MANY = 1_000_000
_BYTES = Integer(0, MAX_BYTES)
_SESSION = Fields({"initiator": Text(), "ip": Text(64)})

HEARTBEAT: Schema = {
    "hostname": Text(),
    "portal": Text(),
    "pool": Text(64),
    "target": Text(64),
    "capacity_bytes": _BYTES,
    "free_bytes": _BYTES,
    "full": Prose(255),
    "limits_io": Boolean(),
    "lost_snapshots": Items(Id(), most=_MANY),
    "filled": Items(Id(), most=_MANY),
    "troubles": Mapped(Prose(10_000), most=_MANY),
    "version": Text(64),
    "sessions": Mapped(Items(_SESSION, most=1000), most=_MANY),
}
RECONCILE: Schema = {
    "volumes": Items(Id(), most=_MANY),
    "snapshots": Items(Id(), most=_MANY),
    "exports": Items(Id(), most=_MANY),
}
CLAIM: Schema = {
    "kinds": Items(Choice(tuple(KINDS)), most=len(KINDS), required=True),
    "wait": Integer(0, int(MAX_WAIT)),
    "lease": Id(),
}
REPORT: Schema = {
    "lease": Id(required=True),
    "status": Choice(("RUNNING", "DONE", "FAILED", "CANCELLED"), required=True),
    "progress": Integer(0, 100),
    "result": Anything(),
    "fill": Fields({"rate": _BYTES, "remaining": _BYTES, "trouble": Prose(10_000)}),
    "error": Fields({"code": Text(64), "reason": Prose(10_000), "retry": Boolean()}),
}


def heartbeat(call: Call) -> Reply:
    """A sign of life."""
    return Reply(200, call.services.nodes.heartbeat(call.path["node"], call.fields))


def reconcile(call: Call) -> Reply:
    """The agent was started, and asks what ought to be there."""
    return Reply(
        200,
        call.services.nodes.reconcile(
            call.path["node"],
            call.fields.get("volumes", []),
            call.fields.get("snapshots", []),
        ),
    )


def exports(call: Call) -> Reply:
    """The exports that must be there now."""
    return Reply(200, call.services.nodes.exports(call.path["node"]))


def claim(call: Call) -> Reply:
    """Wait for a job."""
    job = call.services.claims.claim(
        call.path["node"],
        call.fields["kinds"],
        call.fields.get("wait", 0),
        lambda: _hung_up(call),
        call.fields.get("lease"),
    )
    return Reply(204) if job is None else Reply(200, job)


def report(call: Call) -> Reply:
    """What becomes of a job."""
    return Reply(
        200, call.services.claims.report(call.path["node"], call.path["id"], **call.fields)
    )


def _hung_up(call: Call) -> bool:
    """Whether the agent closed the connection that it waits on, as far as the server tells."""
    get_socket = getattr(call.environ.get("eventlet.input"), "get_socket", None)
    if get_socket is None:
        return False
    connection = socket.socket(fileno=socket.dup(get_socket().fileno()))
    try:
        connection.setblocking(False)
        return connection.recv(1, socket.MSG_PEEK) == b""
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK)
    finally:
        connection.close()
