"""A real Keystone for tests, and a Swift that believes its tokens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.services import call_tool, missing_swift
from tests.support.shared import Service, SharedServices, register_service
from tools.services import identity
from tools.services.loopback import read_env


class Keystone:
    """A Keystone that runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.admin = identity.Administrator(self.access)

    @property
    def access(self) -> dict[str, str]:
        """How to log in as its administrator: the OS_* variables."""
        return read_env(self.root / "env")

    def user(self, name: str, project: str, role: str = "member") -> str:
        """Make a user with a role in a project; the project's id. The password is the name."""
        id = self.admin.ensure("project", project)
        self.admin.grant(role, self.admin.ensure("user", name, password=name), id)
        return id

    def token(self, user: str, scope: Any) -> str:
        """A token of a user that :meth:`user` made; `scope` may be just a project's name."""
        if isinstance(scope, str):
            scope = identity.project(scope)
        return identity.log_in(self.admin.url, identity.by_password(user, user), scope)

    def short_token(self, user: str, project: str, seconds: float) -> str:
        """A token that is good for so long."""
        own = self.token(user, project)
        known = self.admin.call("GET", "/auth/tokens", **{"X-Subject-Token": own})["token"]
        ends = datetime.now(UTC) + timedelta(seconds=seconds)
        made = self.admin.call(
            "POST",
            f"/users/{known['user']['id']}/application_credentials",
            {
                "application_credential": {
                    "name": ends.isoformat(),
                    "expires_at": f"{ends:%Y-%m-%dT%H:%M:%S.%f}",
                }
            },
            **{"X-Auth-Token": own},
        )["application_credential"]
        # A token never outlives the credential that it was got with.
        credential = {"id": made["id"], "secret": made["secret"]}
        who = {"methods": ["application_credential"], "application_credential": credential}
        return identity.log_in(self.admin.url, who)

    def revoke(self, token: str) -> None:
        """Make the token worthless."""
        self.admin.call("DELETE", "/auth/tokens", **{"X-Subject-Token": token})


def _missing_keystone() -> str | None:
    return None if find_spec("keystone") else "needs keystone from PyPI (lunr's extra test)"


def _start_keystone(folder: Path, _services: SharedServices) -> dict[str, str]:
    call_tool("keystone", "start", folder, folder=folder)
    return {"root": str(folder)}


def _start_swift(folder: Path, services: SharedServices) -> dict[str, str]:
    root = services.access(KEYSTONE)["root"]
    call_tool("swift", "start", folder, "--keystone", root, folder=folder)
    return read_env(folder / "env")


KEYSTONE = register_service(
    Service(
        "keystone",
        start=_start_keystone,
        stop=lambda folder: call_tool("keystone", "stop", folder),
        missing=_missing_keystone,
    )
)
SWIFT = register_service(
    Service(
        "keystone_swift",
        start=_start_swift,
        stop=lambda folder: call_tool("swift", "stop", folder),
        missing=lambda: _missing_keystone() or missing_swift(),
    )
)


@pytest.fixture(scope="session")
def keystone(shared_services: SharedServices) -> Keystone:
    """A real Keystone, shared by the whole run: use users and projects of your own."""
    return Keystone(Path(shared_services.access(KEYSTONE)["root"]))


@pytest.fixture(scope="session")
def keystone_swift(shared_services: SharedServices) -> dict[str, str]:
    """The OS_* variables to log in to a real Swift that believes `keystone`."""
    return shared_services.access(SWIFT)
