"""A real Keystone for tests, and a Swift that believes its tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.services import call_tool, need_swift
from tools.services import identity
from tools.services.loopback import read_env


class Keystone:
    """A Keystone that a test may stop, if it starts it again; what it knows stays."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.start()
        self.admin = identity.Administrator(self.access)

    @property
    def access(self) -> dict[str, str]:
        """How to log in as its administrator: the OS_* variables."""
        return read_env(self.root / "env")

    def start(self) -> None:
        """Start it (again), where it was before."""
        call_tool("keystone", "start", self.root)

    def stop(self) -> None:
        """Stop it."""
        call_tool("keystone", "stop", self.root)

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


@pytest.fixture(scope="session")
def keystone(run_folder: Path) -> Iterator[Keystone]:
    """A real Keystone, shared by the whole run: use users and projects of your own."""
    pytest.importorskip("keystone", reason="needs keystone from PyPI (lunr's extra test)")
    root = Path(tempfile.mkdtemp(prefix="keystone-", dir=run_folder))
    try:
        yield Keystone(root)
    finally:
        call_tool("keystone", "stop", root)


@pytest.fixture(scope="session")
def keystone_swift(keystone: Keystone, run_folder: Path) -> Iterator[dict[str, str]]:
    """The OS_* variables to log in to a real Swift that believes `keystone`."""
    need_swift()
    root = Path(tempfile.mkdtemp(prefix="keystone-swift-", dir=run_folder))
    try:
        call_tool("swift", "start", root, "--keystone", keystone.root)
        yield read_env(root / "env")
    finally:
        call_tool("swift", "stop", root)
