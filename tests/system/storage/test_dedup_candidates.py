"""A node whose volumes were made from one another stores what they share once."""

from __future__ import annotations

from lunr.common.units import MIB
from tests.system.storage.pools.test_baselines import SIZE, Ground, ground  # noqa: F401 - a fixture
from tests.system.storage.test_agent import REPOSITORY


def test_the_first_backup_of_a_restored_volume_stores_no_chunk(
    ground: Ground,  # noqa: F811
) -> None:
    ground.save("b1")
    stored = {"repository": REPOSITORY, "backup_id": "b1"}
    ground.api.restore("v2", size_bytes=SIZE, **stored)
    first = ground.api.do(
        "backup.save",
        "v2",
        "c1",
        backup_id="c1",
        repository=REPOSITORY,
        parent_id=None,
        like=["gone", "b1"],
        condemned=[],
        created_at="2026-11-23T12:00:00Z",
    )
    assert first["bytes_read"] == SIZE
    assert first["objects_stored"] == 1, "its segment"
    assert first["bytes_stored"] < MIB
    ground.api.do("backup.delete", "v1", "b1", **stored)
    found = ground.api.do(
        "repository.collect", None, "c", repository=REPOSITORY, keep=[], required=["c1"]
    )
    kept = {"repository": REPOSITORY, "keep": [], "required": ["c1"]}
    ground.api.do("repository.sweep", None, "c", collection=found["collection"], **kept)
    assert ground.restored("c1") == ground.data
    bad = ground.api.add("backup.save", "v2", "c2", like=["../b1"], **{**stored, "backup_id": "c2"})
    assert ground.api.wait(bad)["error"]["code"] == "invalid_field"
