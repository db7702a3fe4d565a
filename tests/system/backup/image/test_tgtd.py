"""A filling volume under tgtd: it answers initiators as a plain file does."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from lunr.storage.targets.base import Export
from lunr.storage.targets.tgt import TgtTarget
from tests.support.services import Tgtd, need_command
from tests.system.backup.image.mounted import MIB, Place, need_fuse
from tests.system.storage import iscsi


def results(url: str) -> dict[str, str]:
    """Each conformance test of libiscsi, and how it ended."""
    done = subprocess.run(
        ["iscsi-test-cu", "-i", iscsi.INITIATOR, "-t", "ALL", "--dataloss", url],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
    found = {}
    for suite, tests in re.findall(
        r"\nSuite: (\S+)(.*?)(?=\nSuite|\nRun|$)", done.stdout, re.DOTALL
    ):
        for name, rest in re.findall(
            r"\n  Test: (\S+) \.\.\.(.*?)(?=\n  Test:|$)", tests, re.DOTALL
        ):
            how = "skipped" if "[SKIPPED]" in rest else "passed"
            found[f"{suite}.{name}"] = "failed" if "FAILED" in rest else how
    assert len(found) > 200, done.stdout[-2000:]
    return found


@pytest.mark.timeout(600)
def test_initiators_see_no_difference(tgtd: Tgtd, tmp_path: Path) -> None:
    need_fuse()
    need_command("iscsi-test-cu", "libiscsi-bin")
    data = random.Random(3).randbytes(64 * MIB)
    place = Place(tmp_path, data)
    worker = place.volume(fill="eager", limit=MIB)  # still filling in the end
    try:
        worker.wait_for("mounted")
        plain = tmp_path / "plain"
        plain.write_bytes(data)
        target = TgtTarget(tgtd.socket, tmp_path)
        seen = {}
        for name, path in (("plain", plain), ("filling", place.file)):
            export = Export(
                volume_id=name,
                path=path,
                iqn=f"iqn.2026-11.io.lunr:{name}",
                lun=1,
                username=name,
                password="secretsecret",
                initiator=None,  # some tests log in by a second name
                ip="127.0.0.1",
                serial=name,
            )
            target.ensure(export)
            seen[name] = results(iscsi.url(tgtd.portal, export))
            target.remove(name, force=True)
        differ = {
            name: (how, seen["filling"].get(name))
            for name, how in seen["plain"].items()
            if seen["filling"].get(name) != how
        }
        assert differ == {}
        assert seen["plain"].keys() == seen["filling"].keys()
        assert list(seen["plain"].values()).count("passed") > 100
    finally:
        place.clean()
        worker.end()
