"""The little of Keystone's API (Identity v3) that it takes to set one up and to log in.

https://docs.openstack.org/api-ref/identity/v3/. The standard library is all it needs.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from tools.testing.patience import patient

#: Seconds that an answer may take.
PATIENCE = patient(60.0)

Headers = Mapping[str, str]


def log_in(url: str, identity: Mapping[str, Any], scope: Any = None) -> str:
    """A token for the ``identity`` (and ``scope``) of a request to /auth/tokens."""
    auth = {"identity": identity, **({} if scope is None else {"scope": scope})}
    request = _request(url, "POST", "/auth/tokens", {"auth": auth})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        token: str = answer.headers["X-Subject-Token"]
    return token


def by_password(user: str, password: str) -> dict[str, Any]:
    """The identity of a user of the default domain."""
    known = {"name": user, "domain": {"id": "default"}, "password": password}
    return {"methods": ["password"], "password": {"user": known}}


def project(name: str) -> dict[str, Any]:
    """The scope of a project of the default domain."""
    return {"project": {"name": name, "domain": {"id": "default"}}}


class Account:
    """Asks the Keystone at `url` with a token."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send a request and return the JSON of its answer."""
        sent = {"X-Auth-Token": self.token, **headers}
        with urllib.request.urlopen(
            _request(self.url, method, path, body, sent), timeout=PATIENCE
        ) as answer:
            return json.loads(answer.read() or b"null")


class Administrator(Account):
    """Changes the Keystone that `env` tells of: the OS_* variables of its administrator."""

    def __init__(self, env: Mapping[str, str]) -> None:
        identity = by_password(env["OS_USERNAME"], env["OS_PASSWORD"])
        url = env["OS_AUTH_URL"]
        super().__init__(url, log_in(url, identity, project(env["OS_PROJECT_NAME"])))

    def ensure(self, kind: str, name: str, **fields: Any) -> str:
        """The id of the project, user, role or service `name`, made with `fields` if it is new."""
        id = self._find(kind, name)
        if id is not None:
            return id
        domain = {"domain_id": "default"} if kind in ("project", "user") else {}
        body = {kind: {"name": name, **domain, **fields}}
        try:
            made: str = self.call("POST", f"/{kind}s", body)[kind]["id"]
        except urllib.error.HTTPError as error:
            id = self._find(kind, name)
            if error.code != HTTPStatus.CONFLICT or id is None:
                raise
            return id  # another process has just made it
        return made

    def _find(self, kind: str, name: str) -> str | None:
        query = urllib.parse.urlencode({"name": name})
        existing = self.call("GET", f"/{kind}s?{query}")[f"{kind}s"]
        return str(existing[0]["id"]) if existing else None

    def grant(self, role: str, user: str, project: str) -> None:
        """Give the user (an id) the role (a name) in the project (an id)."""
        role = self.ensure("role", role)
        self.call("PUT", f"/projects/{project}/users/{user}/roles/{role}")

    def publish(self, service: str, url: str) -> None:
        """Make `url` the only endpoint of the service (an id), for everyone."""
        for old in self.call("GET", f"/endpoints?service_id={service}")["endpoints"]:
            self.call("DELETE", f"/endpoints/{old['id']}")
        for interface in ("public", "internal"):
            endpoint = {"service_id": service, "interface": interface, "url": url}
            self.call("POST", "/endpoints", {"endpoint": {**endpoint, "region": "RegionOne"}})


def _request(
    url: str, method: str, path: str, body: Any, headers: Headers | None = None
) -> urllib.request.Request:
    return urllib.request.Request(
        url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **(headers or {})},
    )
