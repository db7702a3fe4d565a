"""What a storage node's agent asks and tells."""

from __future__ import annotations

import errno
import socket

from lunr.api.jobs.claims import MAX_WAIT
from lunr.api.request import Request, Response
from lunr.api.schema import (
    MAX_BYTES,
    Array,
    Boolean,
    Choice,
    Fields,
    Id,
    Integer,
    Json,
    Object,
    Schema,
    String,
    Text,
)
from lunr.api.services import JOB_TYPES

#: More volumes than a node has.
_MANY = 1_000_000
_BYTES = Integer(0, MAX_BYTES)
_SESSION = Fields({"initiator": String(), "ip": String(64)})

HEARTBEAT: Schema = {
    "hostname": String(),
    "portal": String(),
    "pool": String(64),
    "target": String(64),
    "capacity_bytes": _BYTES,
    "free_bytes": _BYTES,
    "full": Text(255),
    "limits_io": Boolean(),
    "lost_snapshots": Array(Id(), most=_MANY),
    "filled": Array(Id(), most=_MANY),
    "troubles": Object(Text(10_000), most=_MANY),
    "version": String(64),
    "sessions": Object(Array(_SESSION, most=1000), most=_MANY),
}
RECONCILE: Schema = {
    "volumes": Array(Id(), most=_MANY),
    "snapshots": Array(Id(), most=_MANY),
    "exports": Array(Id(), most=_MANY),
}
CLAIM: Schema = {
    "kinds": Array(Choice(JOB_TYPES.names), most=len(JOB_TYPES.names), required=True),
    "wait": Integer(0, int(MAX_WAIT)),
    "lease": Id(),
}
REPORT: Schema = {
    "lease": Id(required=True),
    "status": Choice(("RUNNING", "DONE", "FAILED", "CANCELLED"), required=True),
    "progress": Integer(0, 100),
    "result": Json(),
    "fill": Fields({"rate": _BYTES, "remaining": _BYTES, "trouble": Text(10_000)}),
    "error": Fields({"code": String(64), "reason": Text(10_000), "retry": Boolean()}),
}


def heartbeat(request: Request) -> Response:
    """A sign of life."""
    return Response(200, request.services.nodes.heartbeat(request.path["node"], request.fields))


def reconcile(request: Request) -> Response:
    """The agent was started, and asks what ought to be there."""
    return Response(
        200,
        request.services.nodes.reconcile(
            request.path["node"],
            request.fields.get("volumes", []),
            request.fields.get("snapshots", []),
        ),
    )


def exports(request: Request) -> Response:
    """The exports that must be there now."""
    return Response(200, request.services.nodes.exports(request.path["node"]))


def claim(request: Request) -> Response:
    """Wait for a job."""
    job = request.services.claims.claim(
        request.path["node"],
        request.fields["kinds"],
        request.fields.get("wait", 0),
        lambda: _hung_up(request),
        request.fields.get("lease"),
    )
    return Response(204) if job is None else Response(200, job)


def report(request: Request) -> Response:
    """What becomes of a job."""
    return Response(
        200,
        request.services.claims.report(request.path["node"], request.path["id"], **request.fields),
    )


def _hung_up(request: Request) -> bool:
    """Whether the agent closed the connection that it waits on, as far as the server tells."""
    get_socket = getattr(request.environ.get("eventlet.input"), "get_socket", None)
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
