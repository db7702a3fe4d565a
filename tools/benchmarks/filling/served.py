"""A real Swift, and volumes that fill from it, each served by its process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lunr.backup.format.names import Kind, Ref
from lunr.backup.keys import derive
from lunr.backup.repository.repository import Repository
from lunr.backup.stores import open_store
from tools.services.loopback import read_env

TOP = Path(__file__).resolve().parents[3]


class Swift:
    """The store, and what it takes to reach it."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "swift"
        self._tool("start")
        self.env = env = read_env(self._root / "env")
        self.options = {"auth_url": env["ST_AUTH"], "user": env["ST_USER"], "key": env["ST_KEY"]}
        self.store = open_store("swift:bench", "lazy", self.options)
        self.repository = Repository(self.store, derive.derive(derive.PUBLIC_MASTER, "lazy"))

    def _tool(self, word: str) -> None:
        subprocess.run(
            [TOP / "tools" / "swift", word, self._root], check=True, stdout=subprocess.DEVNULL
        )

    def wipe(self) -> None:
        self.store.close()
        self._tool("wipe")

    def chunks(self, backup_id: str) -> list[str]:
        """The names of the objects of a backup without patches."""
        root = self.repository.load_root(backup_id)
        return [
            entry.name(Kind.CHUNK)
            for chunks, ref in self.repository.segments_of(root)
            if ref is not None
            for entry in self.repository.load_segment(ref, len(chunks))
            if isinstance(entry, Ref)
        ]


class Volume:
    """A volume of a backup, served by its process."""

    def __init__(self, folder: Path, swift: Swift, backup_id: str, size: int, **task: Any) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        point, self.target = self._folder / "mount", self._folder / "target"
        point.mkdir()
        with self.target.open("wb") as file:
            file.truncate(size)
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lunr.backup.lazy_image.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        given = {"target_is_zero": True, "fill": "never", **task}
        order = {
            "task": "volume",
            "store": {"url": "swift:bench", "options": swift.options},
            "key": None,
            "repository": "lazy",
            "backup_id": backup_id,
            "mountpoint": str(point),
            "target": str(self.target),
            "size_bytes": size,
            "map": str(self._folder / "map"),
            "live": str(self._folder / "live"),
            **given,
        }
        self.tell(json.dumps(order))
        self.wait_for("mounted")
        self.path = point / "volume"

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait_for(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found: dict[str, Any] = json.loads(line)
            if found["event"] == event:
                return found
        raise SystemExit(f"the worker ended without {event}")

    def is_filling(self) -> bool:
        """Whether something is still absent."""
        self.tell("status")
        return bool(self.wait_for("progress")["missing"])

    def close(self) -> None:
        self.tell("unmount")
        self._process.wait()
        shutil.rmtree(self._folder)
