"""The races on SQLite: between threads, between Services that share nothing, between processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.functional.api.races import Races
from tests.functional.api.world import World
from tests.support.thorough import examples
from tests.support.waiting import PATIENCE

#: Another process: creates 25 volumes and prints what came of each.
CREATOR = """
import json, sys
from pathlib import Path
from lunr.api.services import Services
from lunr.api.context import Settings
from lunr.api.secret_box import SecretBox
from lunr.common import errors
from lunr.db.session import Database

services = Services(Database(sys.argv[1]), Settings(), SecretBox(sys.argv[2]))
sys.stdin.readline()
told = []
for _ in range(25):
    try:
        services.volumes.create("acme", {"size": 1})
        told.append("made")
    except errors.LunrError as error:
        told.append(error.code)
print(json.dumps(told))
"""


class TestSQLite(Races):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/lunr.db"

    @pytest.fixture
    def jobs(self) -> int:
        return examples(80, 1000)


def test_two_processes_share_the_room(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.beat("n1", gib=10)
    command = [sys.executable, "-c", CREATOR, world.url, str(world.key)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [json.loads(process.communicate(timeout=PATIENCE)[0]) for process in processes]
    world.close()
    assert Counter(told[0] + told[1]) == {"made": 10, "no_room": 40}
