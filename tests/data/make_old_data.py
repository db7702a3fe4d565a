"""Makes old data: what one commit of lunr leaves on disk, for newer code to open.

It runs the whole service of a checkout of that commit, on this machine, as root, and brings
every kind of record into every state that there is::

    git worktree add /tmp/old 701bcfd
    (cd /tmp/old && tools/setup)
    .venv/bin/python -m tests.data.make_old_data /tmp/old tests/data/701bcfd
    git worktree remove --force /tmp/old

It writes ``701bcfd.tar.xz`` (the folder of `lunr up`, with all that was QUEUED or RUNNING left
so) and ``701bcfd.json`` (what it holds, and the digests of its bytes). It imports nothing of
lunr: the API over HTTP and the commands of that commit are all it knows, so that it can be run
again when the modules of today are elsewhere. Three scenes:

1. `lunr up`, a QEMU to back up live, and one more node that only says that it lives;
2. all of that is killed while a save is under way;
3. the API alone: the script plays the agents, so that jobs stay as they are.

For 20 minutes after that the tests fail: until then what was condemned is not swept.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.data.old_scenes import play
from tests.data.old_service import Service


def main(checkout: Path, output: Path) -> None:
    """Make the data of the code in `checkout` at `output`.tar.xz and `output`.json."""
    folder = Path(tempfile.mkdtemp(prefix="old-"))
    service = Service(checkout.resolve(), folder / "lunr")
    try:
        manifest = play(service)
    finally:
        service.kill()
    service.tidy()
    archive = output.with_name(output.name + ".tar.xz")
    subprocess.run(
        ["tar", "--create", "--sparse", "--numeric-owner", "--file", "-", "-C", folder, "lunr"],
        stdout=(plain := (folder / "tar").open("wb")),
        check=True,
    )
    plain.close()
    with archive.open("wb") as file:
        subprocess.run(["xz", "-9e", "--stdout", folder / "tar"], stdout=file, check=True)
    output.with_name(output.name + ".json").write_text(
        json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    )
    shutil.rmtree(folder)
    print(f"{archive}: {archive.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
