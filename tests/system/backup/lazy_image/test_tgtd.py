"""A filling volume under tgtd: it answers initiators as a plain file does."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lunr.storage.targets.base import Export
from lunr.storage.targets.tgt.target import TgtTarget
from tests.support.services import Tgtd, need_command, need_fuse
from tests.system.backup.lazy_image.mounted import MIB, Place
from tests.system.storage import iscsi


def results(url: str, suite_begins: Callable[[str], None] = lambda _: None) -> dict[str, str]:
    """Each conformance test of libiscsi, and how it ended."""
    argv = ["iscsi-test-cu", "-i", iscsi.INITIATOR, "-t", "ALL", "--dataloss", url]
    said = "\n"
    with subprocess.Popen(
        ["stdbuf", "-oL", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if line.startswith("Suite: "):
                suite_begins(line.split()[1])
    found = {}
    for suite, tests in re.findall(r"\nSuite: (\S+)(.*?)(?=\nSuite|\nRun|$)", said, re.DOTALL):
        for name, rest in re.findall(
            r"\n  Test: (\S+) \.\.\.(.*?)(?=\n  Test:|$)", tests, re.DOTALL
        ):
            how = "skipped" if "[SKIPPED]" in rest else "passed"
            found[f"{suite}.{name}"] = "failed" if "FAILED" in rest else how
    assert len(found) > 200, said[-2000:]
    return found


@pytest.mark.timeout(600)
def test_initiators_see_no_difference(tgtd: Tgtd, tmp_path: Path) -> None:
    need_fuse()
    need_command("iscsi-test-cu", "libiscsi-bin")
    data = random.Random(3).randbytes(24 * MIB)  # one of them writes all of it, time and again
    place = Place(tmp_path, data)
    worker = place.volume(fill="eager", limit=MIB // 64)
    left: dict[str, int] = {}

    def still_fills(suite: str) -> None:
        worker.tell("still")
        absent = worker.wait_for("unfetched")["extents"]
        worker.tell("go")
        left[suite] = sum(length for _, length in absent)

    try:
        worker.wait_for("mounted")
        plain = tmp_path / "plain"
        plain.write_bytes(data)
        target = TgtTarget(tgtd.socket, tmp_path)
        seen = {}
        for name, path in (("filling", place.file), ("plain", plain)):
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
            look = still_fills if name == "filling" else lambda _: None
            seen[name] = results(iscsi.url(tgtd.portal, export), look)
            target.remove(name, force=True)
        differ = {
            name: (how, seen["filling"].get(name))
            for name, how in seen["plain"].items()
            if seen["filling"].get(name) != how
        }
        assert differ == {}
        # One of the tests of WRITE SAME writes the whole disk: after that nothing is missing.
        before = list(left)[: list(left).index("WriteSame10")]
        assert len(before) > 40 and all(left[suite] for suite in before), left
        assert seen["plain"].keys() == seen["filling"].keys()
        assert list(seen["plain"].values()).count("passed") > 100
    finally:
        place.clean()
        worker.end()
