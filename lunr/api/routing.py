"""Every route of the service, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from routes import Mapper

from lunr.api.request import Request, Response
from lunr.api.schema import Schema
from lunr.api.v1 import (
    accounts,
    admin,
    backups,
    exports,
    groups,
    jobs,
    node_agent,
    nodes,
    retention,
    schedules,
    snapshots,
    volume_types,
    volumes,
)
from lunr.api.v1.schemas import NAMED, NOTHING
from lunr.common import errors

#: Who may: any token of the path's account (and every admin's) · an admin's ·
#: the token of the path's node.
MEMBER, ADMIN, NODE = "member", "admin", "node"


@dataclass(frozen=True)
class Route:
    """A method and a path, what answers it, who may, and which fields it takes.

    `open_fields`: names with dots are filters (``metadata.KEY``).
    """

    method: str
    path: str
    handler: Callable[[Request], Response]
    role: str
    fields: Schema
    open_fields: bool = False


_A = "/v1.0/{account}"
_V = "/v1.0/{account}/volumes/{id}"
_B = "/v1.0/{account}/backups/{backup_id}"
_N = "/v1.0/nodes/{node}"

ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1.0/admin/accounts", accounts.index, ADMIN, accounts.LIST),
    Route("POST", "/v1.0/admin/accounts", accounts.create, ADMIN, accounts.CREATE),
    Route("GET", "/v1.0/admin/accounts/{id}", accounts.show, ADMIN, NOTHING),
    Route("POST", "/v1.0/admin/accounts/{id}", accounts.update, ADMIN, accounts.UPDATE),
    Route("DELETE", "/v1.0/admin/accounts/{id}", accounts.delete, ADMIN, NOTHING),
    Route("GET", "/v1.0/admin/accounts/{id}/tokens", accounts.tokens, ADMIN, NOTHING),
    Route(
        "POST",
        "/v1.0/admin/accounts/{id}/tokens",
        accounts.create_token,
        ADMIN,
        accounts.CREATE_TOKEN,
    ),
    Route(
        "DELETE",
        "/v1.0/admin/accounts/{id}/tokens/{token_id}",
        accounts.revoke_token,
        ADMIN,
        NOTHING,
    ),
    Route("POST", "/v1.0/admin/accounts/{id}/collect", accounts.collect, ADMIN, NOTHING),
    Route("GET", "/v1.0/admin/nodes", nodes.index, ADMIN, nodes.LIST),
    Route("POST", "/v1.0/admin/nodes", nodes.create, ADMIN, nodes.CREATE),
    Route("GET", "/v1.0/admin/nodes/{id}", nodes.show, ADMIN, NOTHING),
    Route("POST", "/v1.0/admin/nodes/{id}", nodes.update, ADMIN, nodes.UPDATE),
    Route("DELETE", "/v1.0/admin/nodes/{id}", nodes.delete, ADMIN, nodes.DELETE),
    Route("GET", "/v1.0/admin/volume_types", volume_types.index, ADMIN, NOTHING),
    Route("POST", "/v1.0/admin/volume_types", volume_types.create, ADMIN, volume_types.CREATE),
    Route("GET", "/v1.0/admin/volume_types/{name}", volume_types.show, ADMIN, NOTHING),
    Route(
        "POST", "/v1.0/admin/volume_types/{name}", volume_types.update, ADMIN, volume_types.UPDATE
    ),
    Route("DELETE", "/v1.0/admin/volume_types/{name}", volume_types.delete, ADMIN, NOTHING),
    Route("GET", "/v1.0/admin/schedules", admin.schedules, ADMIN, admin.SCHEDULES),
    Route("POST", "/v1.0/admin/schedules", schedules.create_for_type, ADMIN, schedules.FOR_TYPE),
    Route("GET", "/v1.0/admin/schedules/{id}", schedules.show, ADMIN, NOTHING),
    Route("POST", "/v1.0/admin/schedules/{id}", schedules.update, ADMIN, schedules.UPDATE),
    Route("DELETE", "/v1.0/admin/schedules/{id}", schedules.delete, ADMIN, NOTHING),
    Route("GET", "/v1.0/admin/volumes", admin.volumes, ADMIN, admin.VOLUMES, True),
    Route("GET", "/v1.0/admin/snapshots", admin.snapshots, ADMIN, admin.SNAPSHOTS),
    Route("GET", "/v1.0/admin/backups", admin.backups, ADMIN, admin.BACKUPS),
    Route("GET", "/v1.0/admin/exports", admin.exports, ADMIN, admin.EXPORTS),
    Route("GET", "/v1.0/admin/jobs", admin.jobs, ADMIN, admin.JOBS),
    Route("PUT", _N, node_agent.heartbeat, NODE, node_agent.HEARTBEAT),
    Route("POST", f"{_N}/reconcile", node_agent.reconcile, NODE, node_agent.RECONCILE),
    Route("GET", f"{_N}/exports", node_agent.exports, NODE, NOTHING),
    Route("POST", f"{_N}/jobs/claim", node_agent.claim, NODE, node_agent.CLAIM),
    Route("PUT", f"{_N}/jobs/{{id}}", node_agent.report, NODE, node_agent.REPORT),
    Route("GET", f"{_A}/volumes", volumes.index, MEMBER, volumes.LIST, True),
    Route("POST", f"{_A}/volumes", volumes.create, MEMBER, volumes.CREATE),
    Route("PUT", _V, volumes.put, MEMBER, volumes.CREATE),
    Route("GET", _V, volumes.show, MEMBER, NOTHING),
    Route("POST", _V, volumes.update, MEMBER, volumes.UPDATE),
    Route("DELETE", _V, volumes.delete, MEMBER, NOTHING),
    Route("POST", f"{_V}/extend", volumes.extend, MEMBER, volumes.EXTEND),
    Route("GET", f"{_V}/snapshots", snapshots.of_volume, MEMBER, snapshots.LIST),
    Route("POST", f"{_V}/snapshots", snapshots.create, MEMBER, NAMED),
    Route("GET", f"{_V}/backups", backups.of_volume, MEMBER, backups.LIST),
    Route("POST", f"{_V}/backups", backups.create, MEMBER, backups.CREATE),
    Route("PUT", f"{_V}/backups/{{backup_id}}", backups.put, MEMBER, backups.CREATE),
    Route("GET", f"{_V}/backups/{{backup_id}}", backups.show, MEMBER, NOTHING),
    Route("DELETE", f"{_V}/backups/{{backup_id}}", backups.delete, MEMBER, NOTHING),
    Route("GET", f"{_V}/retention", retention.show, MEMBER, NOTHING),
    Route("PUT", f"{_V}/retention", retention.put, MEMBER, retention.RULES),
    Route("DELETE", f"{_V}/retention", retention.delete, MEMBER, NOTHING),
    Route("POST", f"{_V}/prune", retention.prune, MEMBER, retention.PRUNE),
    Route("GET", f"{_V}/schedule", schedules.of_volume, MEMBER, NOTHING),
    Route("PUT", f"{_V}/export", exports.put, MEMBER, exports.CREATE),
    Route("GET", f"{_V}/export", exports.show, MEMBER, NOTHING),
    Route("DELETE", f"{_V}/export", exports.delete, MEMBER, exports.DELETE),
    Route("GET", f"{_A}/snapshots", snapshots.index, MEMBER, snapshots.LIST),
    Route("GET", f"{_A}/snapshots/{{id}}", snapshots.show, MEMBER, NOTHING),
    Route("DELETE", f"{_A}/snapshots/{{id}}", snapshots.delete, MEMBER, NOTHING),
    Route("GET", f"{_A}/backups", backups.index, MEMBER, backups.LIST),
    Route("GET", _B, backups.show, MEMBER, NOTHING),
    Route("POST", _B, backups.update, MEMBER, backups.UPDATE),
    Route("DELETE", _B, backups.delete, MEMBER, NOTHING),
    Route("GET", f"{_B}/restores", backups.restores, MEMBER, NOTHING),
    Route("POST", f"{_B}/verify", backups.verify, MEMBER, NOTHING),
    Route("GET", f"{_A}/groups", groups.index, MEMBER, groups.LIST),
    Route("GET", f"{_A}/groups/{{id}}", groups.show, MEMBER, NOTHING),
    Route("PUT", f"{_A}/groups/{{id}}", groups.put, MEMBER, groups.PUT),
    Route("DELETE", f"{_A}/groups/{{id}}", groups.delete, MEMBER, NOTHING),
    Route("GET", f"{_A}/schedules", schedules.index, MEMBER, schedules.LIST),
    Route("POST", f"{_A}/schedules", schedules.create, MEMBER, schedules.CREATE),
    Route("GET", f"{_A}/schedules/{{id}}", schedules.show, MEMBER, NOTHING),
    Route("POST", f"{_A}/schedules/{{id}}", schedules.update, MEMBER, schedules.UPDATE),
    Route("DELETE", f"{_A}/schedules/{{id}}", schedules.delete, MEMBER, NOTHING),
    Route("GET", f"{_A}/jobs", jobs.index, MEMBER, jobs.LIST),
    Route("GET", f"{_A}/jobs/{{id}}", jobs.show, MEMBER, NOTHING),
    Route("DELETE", f"{_A}/jobs/{{id}}", jobs.cancel, MEMBER, NOTHING),
    Route("GET", f"{_A}/volume_types", volume_types.index, MEMBER, NOTHING),
)


class Table:
    """Finds the route of a request."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        self._paths: dict[str, dict[str, Route]] = {}
        for route in routes:
            self._paths.setdefault(route.path, {})[route.method] = route
        self._mapper = Mapper(register=False)
        self._mapper.minimization = False
        for path in self._paths:
            self._mapper.connect(path, path)
        self._mapper.create_regs()

    def __iter__(self) -> Iterator[Route]:
        return (route for methods in self._paths.values() for route in methods.values())

    def match(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route, and the parts of the path by their names.

        Raises:
            errors.NoSuchRoute: there is nothing at the path.
            errors.MethodNotAllowed: but not for this method.
        """
        found = self._mapper.routematch(path)
        if found is None:
            raise errors.NoSuchRoute(path=ascii(path[:200])[1:-1])
        parts, matched = found
        methods = self._paths[matched.routepath]
        route = methods.get(method)
        if route is None:
            raise errors.MethodNotAllowed(
                path=matched.routepath, allowed=", ".join(sorted(methods)), method=method[:16]
            )
        return route, {name: value for name, value in parts.items() if name in matched.minkeys}
