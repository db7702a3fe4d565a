"""The WSGI application: the dispatcher, and the middleware around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lunr.api import request_params
from lunr.api import schema as fields
from lunr.api.middleware import (
    access,
    auth,
    body_limit,
    faults,
    healthcheck,
    metrics,
)
from lunr.api.request import Request, answer
from lunr.api.routing import Route, Table
from lunr.api.services import Services
from lunr.common import errors, ids
from lunr.common.concurrency import WSGIApp
from lunr.common.config import ConfigOpts
from lunr.db import migrate


def build(conf: ConfigOpts) -> tuple[WSGIApp, Services]:
    """The service as `conf` configures it: the application, and the services in it.

    Raises:
        errors.ConfigError: the key file, the database or Keystone can't be used as they are.
        errors.Unavailable: the database can't be reached.
    """
    services = Services.of(conf)
    services.context.secret_box.check()
    migrate.check(services.context.db)
    identities: list[auth.Identity] = [auth.OwnTokens(services.tokens)]
    if conf.api.auth == "keystone":
        identities.append(_keystone(conf, services))
    return wrap(services, identities, conf.api.max_body_bytes), services


def _keystone(conf: ConfigOpts, services: Services) -> auth.Identity:
    try:  # here and not above: it is an extra, and slow to import
        from lunr.api.middleware.keystone import Keystone
    except ImportError as error:
        raise errors.ConfigError(
            reason=f"[api] auth = keystone needs the packages of lunr's extra keystone: {error}"
        ) from error
    return Keystone(conf, services.accounts)


def build_app(conf: ConfigOpts) -> WSGIApp:
    """The application of :func:`build`, for those who serve it themselves."""
    return build(conf)[0]


def wrap(
    services: Services, identities: Sequence[auth.Identity], max_body_bytes: int = 1 << 20
) -> WSGIApp:
    """The application over `services`, with all its middleware."""
    app: WSGIApp = Dispatcher(services)
    app = body_limit.BodyLimit(app, max_body_bytes)
    app = auth.Auth(app, identities)
    app = healthcheck.Healthcheck(app, services)
    app = faults.ErrorResponses(app)
    app = metrics.Metrics(app, services)
    return access.Access(app)


class Dispatcher:
    """Routes a request, checks who asks and what for, and calls its controller."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._table = Table()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """PEP 3333."""
        route, path = self._table.match(environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/"))
        environ["lunr.route"] = route.path
        for name, value in path.items():
            ids.check(value, name)
        who = environ["lunr.principal"]
        auth.authorize(self._services, who, route.role, path)
        given = request_params.read(environ, flat=route.open_fields)
        request = Request(self._services, who, path, self._parse(route, given), environ)
        return answer(route.handler(request), environ, start_response)

    def _parse(self, route: Route, given: request_params.Given) -> dict[str, Any]:
        if not route.open_fields:
            return fields.parse(route.fields, given)
        schema = dict(route.fields)
        key = fields.Object()
        for name in given:
            if name.startswith("metadata."):
                key.parse("metadata", {name.removeprefix("metadata."): given[name]})
                schema[name] = fields.String()
        return fields.parse(schema, given)
