"""Whatever is written, saved, deleted and collected: every backup reads as its volume was."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lunr.backup.format.names import Geometry, Kind, root_name
from lunr.backup.format.segments import Patched, objects_of
from lunr.backup.read.plan import load_range
from lunr.backup.read.restore import restore
from lunr.backup.repository import pending_deletion
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.verify import verify
from lunr.backup.save import patch_rewrite_policy
from lunr.backup.stores.memory import MemoryStore
from tests.support.thorough import examples
from tests.unit.backup.support import load_bytes, repository, save_bytes

#: 16 blocks a chunk, three chunks a segment.
GEOMETRY = Geometry(block=16, chunk=256, segment_chunks=3)
LARGEST = 7 * GEOMETRY.chunk

seeds = st.integers(0, 1 << 32)
offsets = st.integers(0, LARGEST)


class Chain(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        # So that a handful of saves are many, and old patches are taken along.
        self.patch.setattr(patch_rewrite_policy, "_FEW", 2)
        self.store = MemoryStore()
        self.repo = repository(self.store)
        self.volume = bytearray(5 * GEOMETRY.chunk - 7)
        self.backups: dict[str, bytes] = {}
        self.serial = 0

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.patch.undo()

    # --- the volume ----------------------------------------------------------------

    @rule(offset=offsets, length=st.integers(1, 300), seed=seeds)
    def write(self, offset: int, length: int, seed: int) -> None:
        end = min(offset + length, len(self.volume))
        if offset < end:
            self.volume[offset:end] = random.Random(seed).randbytes(end - offset)

    @rule(seed=seeds, count=st.integers(1, 20))
    def write_scattered_blocks(self, seed: int, count: int) -> None:
        chance = random.Random(seed)
        for _ in range(count):
            self.write(
                chance.randrange(LARGEST) // GEOMETRY.block * GEOMETRY.block,
                GEOMETRY.block,
                chance.randrange(1 << 32),
            )

    @rule(offset=offsets, length=st.integers(1, 600))
    def discard(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self.volume))
        if offset < end:
            self.volume[offset:end] = bytes(end - offset)

    @rule(begin=offsets, place=offsets, length=st.integers(1, 600))
    def copy(self, begin: int, place: int, length: int) -> None:
        part = self.volume[begin : begin + length]
        end = min(place + len(part), len(self.volume))
        if place < end:
            self.volume[place:end] = part[: end - place]

    @rule(size=offsets)
    def resize(self, size: int) -> None:
        self.volume = self.volume[:size].ljust(size, b"\0")

    # --- backups ---------------------------------------------------------------------

    @rule(data=st.data(), holes=st.booleans(), concurrency=st.sampled_from([1, 1, 3]))
    def save(self, data: st.DataObject, holes: bool, concurrency: int) -> None:
        parent = data.draw(st.sampled_from([None, *self.backups, *list(self.backups)[-1:] * 5]))
        changed = None
        if parent is not None and data.draw(st.booleans()):
            changed = self.changes(self.backups[parent], data.draw(seeds))
        self.serial += 1
        content = bytes(self.volume)
        save_bytes(
            self.repo,
            content,
            f"b{self.serial}",
            parent,
            holes=holes,
            concurrency=concurrency,
            geometry=GEOMETRY,
            changed=changed,
        )
        self.backups[f"b{self.serial}"] = content

    def changes(self, before: bytes, seed: int) -> list[tuple[int, int]]:
        """Ranges that cover what differs from `before`, where both have bytes."""
        chance = random.Random(seed)
        step = chance.choice([1, 5, 16, 100])
        ranges: list[tuple[int, int]] = []
        for start in range(0, len(self.volume), step):
            end = min(start + step, len(self.volume))
            if self.volume[start:end] != before[start:end] or chance.random() < 0.02:
                if ranges and ranges[-1][1] == start:
                    start = ranges.pop()[0]
                ranges.append((start, end))
        return ranges

    @precondition(lambda self: self.backups)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        backup_id = data.draw(st.sampled_from(list(self.backups)))
        del self.backups[backup_id]
        assert self.repo.delete_root(backup_id)

    @rule()
    def condemn(self) -> None:
        collect(self.repo, threads=1)

    @rule()
    def sweep(self) -> None:
        for collection in pending_deletion.listed(self.repo):
            sweep(self.repo, collection, threads=1)

    # --- what must hold ------------------------------------------------------------------

    @precondition(lambda self: self.backups)
    @rule(data=st.data(), concurrency=st.sampled_from([1, 3]), is_new=st.booleans())
    def restore(self, data: st.DataObject, concurrency: int, is_new: bool) -> None:
        backup_id = data.draw(st.sampled_from(list(self.backups)))
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "target"
            if not is_new:
                target.write_bytes(b"\xaa" * (LARGEST + 10))
            restore(self.repo, backup_id, target, create=is_new, concurrency=concurrency)
            expected = self.backups[backup_id]
            if not is_new:
                expected = expected.ljust(LARGEST + 10, b"\0")
            assert target.read_bytes() == expected

    @precondition(lambda self: self.backups)
    @rule(data=st.data(), seed=seeds)
    def read_some_blocks(self, data: st.DataObject, seed: int) -> None:
        backup_id = data.draw(st.sampled_from(list(self.backups)))
        chance = random.Random(seed)
        root = self.repo.load_root(backup_id)
        content = self.backups[backup_id]
        for chunks, ref in self.repo.segments_of(root):
            entries = self.repo.load_segment(ref, len(chunks)) if ref else []
            for chunk, entry in zip(chunks, entries, strict=False):
                length = GEOMETRY.chunk_length(chunk, len(content))
                first = chance.randrange(-(-length // GEOMETRY.block))
                stop = min(first + chance.randrange(1, 9), -(-length // GEOMETRY.block))
                got = load_range(self.repo, entry, length, GEOMETRY, range(first, stop))
                start = chunk * GEOMETRY.chunk
                end = min(stop * GEOMETRY.block, length)
                assert bytes(got) == content[start + first * GEOMETRY.block : start + end]

    @invariant()
    def every_backup_reads_as_it_was(self) -> None:
        for backup_id, content in self.backups.items():
            assert load_bytes(self.repo, backup_id) == content

    @invariant()
    def the_rules_hold(self) -> None:
        for backup_id in self.backups:
            root = self.repo.load_root(backup_id)
            for chunks, ref in self.repo.segments_of(root):
                entries = self.repo.load_segment(ref, len(chunks)) if ref else []
                names = [name for name in objects_of(*entries) if name.startswith(Kind.PATCH)]
                assert len(names) <= 2
                for chunk, entry in zip(chunks, entries, strict=False):
                    if isinstance(entry, Patched):
                        length = GEOMETRY.chunk_length(chunk, root.size_bytes)
                        count = -(-length // GEOMETRY.block)
                        patched = [
                            n for p in entry.pieces for n in range(p.first, p.first + p.blocks)
                        ]
                        assert len(set(patched)) == len(patched) <= count * 9 / 16
                        assert all(number < count for number in patched)

    def finish(self) -> None:
        assert verify(self.repo, concurrency=2).damaged == {}
        for _ in range(2):
            self.sweep()
            self.condemn()
        self.sweep()
        needed = {root_name(backup_id) for backup_id in self.backups}
        for backup_id in self.backups:
            root = self.repo.load_root(backup_id)
            for chunks, ref in self.repo.segments_of(root):
                if ref is not None:
                    needed.add(ref.name(Kind.SEGMENT))
                    needed.update(objects_of(*self.repo.load_segment(ref, len(chunks))))
        assert needed == set(self.store.objects)
        self.every_backup_reads_as_it_was()


TestChain = Chain.TestCase
TestChain.settings = settings(max_examples=examples(30, 500), stateful_step_count=40)
