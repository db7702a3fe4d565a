"""lunr-manage, as an operator runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lunr.api.services import Services
from lunr.backup.keys import from_config
from lunr.backup.open import open_repository
from lunr.backup.repository.repository import Repository
from lunr.common import config
from lunr.manage.main import main


class Manage:
    """lunr-manage with a configuration of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "lunr.conf"
        self.file.write_text(
            f"[database]\nconnection = sqlite:///{folder}/lunr.db\n"
            f"[api]\nsecret_key_file = {folder}/secret.key\n"
            f"[node]\ntoken_file = {folder}/node.token\n"
            f"[store]\nurl = files:{folder}/store\nkey = file:{folder}/master.key\n"
        )

    def __call__(self, *args: str) -> Result:
        return CliRunner().invoke(main, ["--config-file", str(self.file), *args])

    def bootstrap(self) -> Result:
        files = ("--openrc", str(self.folder / "openrc"), "--url", "http://127.0.0.1:1")
        return self("bootstrap", "--account", "a", "--node", "n", *files)

    def told(self, *args: str) -> Any:
        """What a command that must succeed prints."""
        result = self(*args)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    def services(self) -> Services:
        return Services.of(config.load(["--config-file", str(self.file)]))

    @contextmanager
    def repository(self, account: str) -> Iterator[Repository]:
        """An account's repository, as a node that starts now would open it."""
        conf = config.load(["--config-file", str(self.file)])
        master_keys = from_config.open_master_keys(conf)
        with open_repository(conf.store.url, account, master_keys, {}) as repository:
            yield repository


@pytest.fixture
def manage(tmp_path: Path) -> Manage:
    return Manage(tmp_path)
