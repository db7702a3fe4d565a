from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.backup import errors
from lunr.backup.format import blocks, names, roots, segments
from lunr.backup.format.blocks import Compression, ObjectKind
from lunr.backup.format.names import Geometry, Kind, Ref
from lunr.backup.format.segments import Entry, Patched, Piece
from lunr.backup.keys import derive
from lunr.backup.keys.derive import Cipher
from lunr.backup.repository.repository import Repository
from lunr.backup.stores.files import FileStore
from lunr.backup.stores.memory import MemoryStore
from tests.unit.backup.support import KEYS, build_patched, load_bytes, repository

HERE = Path(__file__).parent
BLOCK = 64

refs = st.builds(Ref, st.binary(min_size=32, max_size=32), st.binary(min_size=8, max_size=8))
pieces = st.builds(
    Piece,
    st.integers(0, 127),
    st.integers(1, 128),
    st.one_of(st.none(), refs),
    st.integers(0, 1 << 20),
)
entries = st.one_of(
    st.none(),
    refs,
    st.builds(
        Patched,
        st.binary(min_size=32, max_size=32),
        st.one_of(st.none(), refs),
        st.lists(pieces, max_size=4).map(tuple),
    ),
)
# Blocks that shrink, that do not, and a last one of any length.
contents = st.lists(
    st.one_of(
        st.binary(min_size=BLOCK, max_size=BLOCK),
        st.integers(0, 3).map(lambda b: bytes([b]) * BLOCK),
    ),
    max_size=12,
).flatmap(lambda parts: st.binary(min_size=1, max_size=BLOCK).map(lambda t: b"".join([*parts, t])))


ciphers = st.sampled_from(Cipher)
PLAIN = dataclasses.replace(KEYS, writes=Cipher.NONE)


def encode(
    data: bytes,
    compression: Compression = Compression.ZSTD,
    cipher: Cipher = Cipher.AES_256_GCM,
    token: bytes = bytes(8),
) -> tuple[Ref, bytes]:
    view = memoryview(data)
    hashes = blocks.hash_blocks(view, BLOCK, KEYS)
    ref = Ref(blocks.content_hash(hashes, KEYS), token)
    own = dataclasses.replace(KEYS, writes=cipher)
    return ref, b"".join(
        blocks.encode(ObjectKind.CHUNK, ref, view, hashes, BLOCK, compression, own)
    )


def decode(raw: bytes, ref: Ref) -> bytes:
    index = blocks.read_index(raw, ref, "it", KEYS)
    frames = memoryview(raw)[index.ends[0] :]
    return bytes(blocks.read_blocks(frames, index, 0, len(index.hashes), "it", KEYS))


@given(contents, st.sampled_from(Compression), ciphers)
def test_an_object_reads_as_it_was_written(
    data: bytes, compression: Compression, cipher: Cipher
) -> None:
    ref, raw = encode(data, compression, cipher)
    assert decode(raw, ref) == data


@given(contents, ciphers, st.data())
def test_any_range_can_be_read_alone(data: bytes, cipher: Cipher, draw: st.DataObject) -> None:
    ref, raw = encode(data, cipher=cipher)
    assert blocks.read_header(raw, "it") <= blocks.index_size(-(-len(data) // BLOCK))
    index = blocks.read_index(raw[: blocks.read_header(raw, "it")], ref, "it", KEYS)
    first = draw.draw(st.integers(0, len(index.hashes) - 1))
    count = draw.draw(st.integers(1, len(index.hashes) - first))
    frames = raw[index.ends[first] : index.ends[first + count]]
    got = blocks.read_blocks(frames, index, first, count, "it", KEYS)
    assert bytes(got) == data[first * BLOCK : (first + count) * BLOCK]


def flip(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(contents, st.data())
def test_no_changed_bit_of_an_encrypted_object_gets_through(
    data: bytes, draw: st.DataObject
) -> None:
    ref, raw = encode(data, draw.draw(st.sampled_from(Compression)))
    changed = flip(raw, draw.draw(st.integers(0, len(raw) * 8 - 1)))
    with pytest.raises((errors.CorruptObject, errors.UnsupportedFormat), match="it"):
        decode(changed, ref)


@given(contents, st.data())
def test_no_changed_bit_of_a_plain_object_gets_through(data: bytes, draw: st.DataObject) -> None:
    ref, raw = encode(data, cipher=Cipher.NONE)
    position = draw.draw(st.integers(0, len(raw) * 8 - 1))
    try:
        got = decode(flip(raw, position), ref)
    except (errors.CorruptObject, errors.UnsupportedFormat) as error:
        assert "it" in str(error)
    else:  # a bit that says nothing: zstd may be named where no frame is compressed
        assert got == data
        assert position // 8 < blocks.HEADER.size or Compression.ZSTD in raw[7:8]


@given(contents, st.data())
def test_lengths_that_changed_places_are_seen_or_do_not_matter(
    data: bytes, draw: st.DataObject
) -> None:
    ref, raw = encode(data, cipher=Cipher.NONE)
    index = blocks.read_index(raw, ref, "it", KEYS)
    lengths = [end - start for start, end in pairwise(index.ends)]
    first, second = (draw.draw(st.integers(0, len(lengths) - 1)) for _ in range(2))
    change = draw.draw(st.integers(-lengths[first], 40))
    changed = bytearray(raw)
    for block, by in ((first, change), (second, -change)):
        at = blocks.HEADER.size + block * blocks.ENTRY_SIZE + 32
        length = int.from_bytes(changed[at : at + 4], "little")
        changed[at : at + 4] = max(0, length + by).to_bytes(4, "little")
    try:
        assert decode(bytes(changed), ref) == data
    except errors.CorruptObject as error:
        assert "it" in str(error)


@given(contents, st.sampled_from(Compression))
def test_an_encrypted_object_shows_neither_bytes_nor_hashes(
    data: bytes, compression: Compression
) -> None:
    ref, raw = encode(data, compression)
    body = raw[blocks.HEADER.size :]
    shown = [data[at : at + 8] for at in range(len(data) - 7)]
    shown += blocks.hash_blocks(memoryview(data), BLOCK, KEYS)
    assert not any(piece in body for piece in shown if len(piece) >= 8)
    assert ref.hash not in raw


@given(contents)
def test_the_same_content_of_two_sessions_has_nothing_in_common(data: bytes) -> None:
    _, one = encode(data, Compression.NONE, token=b"session1")
    _, two = encode(data, Compression.NONE, token=b"session2")
    assert one[: blocks.HEADER.size] == two[: blocks.HEADER.size]
    at = range(blocks.HEADER.size, len(one) - 8)
    assert all(one[i : i + 8] != two[i : i + 8] for i in at)
    assert encode(data, Compression.NONE, token=b"session1")[1] == one  # of one and the same: all


def test_a_frame_in_anothers_place_is_seen() -> None:
    ref, raw = encode(b"x" * BLOCK + b"y" * BLOCK, Compression.NONE)
    start, length = blocks.read_header(raw, "it"), BLOCK + 16
    first, second = raw[start : start + length], raw[start + length :]
    with pytest.raises(errors.CorruptObject, match="part 0"):
        decode(raw[:start] + second + first, ref)


@given(contents, st.data())
def test_a_cut_object_is_corrupt(data: bytes, draw: st.DataObject) -> None:
    ref, raw = encode(data, cipher=draw.draw(ciphers))
    cut = draw.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(errors.CorruptObject):
        decode(raw[:cut], ref)


@pytest.mark.parametrize("cipher", Cipher)
def test_bytes_after_the_end_are_corrupt(cipher: Cipher) -> None:
    ref, raw = encode(b"x" * 200, cipher=cipher)
    with pytest.raises(errors.CorruptObject):
        decode(raw + b"!", ref)


@pytest.mark.parametrize("cipher", Cipher)
def test_another_object_under_the_name_is_corrupt(cipher: Cipher) -> None:
    ref, _ = encode(b"x" * 200, cipher=cipher)
    _, other = encode(b"y" * 200, cipher=cipher)
    with pytest.raises(errors.CorruptObject, match="its index"):
        decode(other, ref)


@pytest.mark.parametrize("cipher", Cipher)
def test_with_another_key_nothing_passes(cipher: Cipher) -> None:
    ref, raw = encode(b"x" * 200, cipher=cipher)
    other = derive.derive(bytes(32), "default")
    with pytest.raises(errors.CorruptObject):
        blocks.read_index(raw, ref, "it", other)


@pytest.mark.parametrize(("offset", "value"), [(4, 2), (4, 0), (5, 3), (6, 2), (7, 2)])
def test_what_the_reader_does_not_know_is_refused(offset: int, value: int) -> None:
    ref, raw = encode(b"x" * 200)
    changed = bytearray(raw)
    changed[offset] = value
    with pytest.raises(errors.UnsupportedFormat, match="it is written in a way"):
        decode(bytes(changed), ref)


def test_what_does_not_shrink_is_stored_as_it_is() -> None:
    data = bytes(range(256)) * 2
    _, raw = encode(data[:256] + b"", cipher=Cipher.NONE)
    assert data[:256] in raw
    _, raw = encode(b"a" * 5000, cipher=Cipher.NONE)
    assert len(raw) < 5000


def test_the_data_is_not_copied() -> None:
    view = memoryview(bytearray(range(256)))
    hashes = blocks.hash_blocks(view, BLOCK, KEYS)
    ref = Ref(blocks.content_hash(hashes, KEYS), bytes(8))
    parts = blocks.encode(ObjectKind.CHUNK, ref, view, hashes, BLOCK, Compression.NONE, PLAIN)
    assert parts[-1] is view


# --- segments ----------------------------------------------------------------------


@given(st.lists(entries, max_size=40), ciphers)
def test_a_segment_reads_as_it_was_written(wanted: list[Entry], cipher: Cipher) -> None:
    own = dataclasses.replace(KEYS, writes=cipher)
    ref, raw = segments.encode(wanted, bytes(8), own)
    assert segments.decode(raw, ref, "it", KEYS) == wanted
    assert segments.encode(wanted, bytes(8), own) == (ref, raw)


@given(st.lists(entries, max_size=10), ciphers, st.data())
def test_a_changed_segment_is_seen(
    wanted: list[Entry], cipher: Cipher, draw: st.DataObject
) -> None:
    ref, raw = segments.encode(wanted, bytes(8), dataclasses.replace(KEYS, writes=cipher))
    position = draw.draw(st.integers(0, len(raw) * 8 - 1))
    try:
        got = segments.decode(flip(raw, position), ref, "it", KEYS)
    except (errors.CorruptObject, errors.UnsupportedFormat):
        pass
    else:  # bits in zstd's frame that say nothing
        assert got == wanted
        assert cipher is Cipher.NONE
    with pytest.raises(errors.CorruptObject):
        segments.decode(raw[: position // 8], ref, "it", KEYS)


def test_an_encrypted_segment_does_not_tell_its_chunks() -> None:
    chunks: list[Entry] = [Ref(bytes(range(n, n + 32)), b"tokenabc") for n in range(40)]
    _, raw = segments.encode(chunks, bytes(8), KEYS)
    assert not any(bytes(range(n, n + 8)) in raw for n in range(64))
    assert b"tokenabc" not in raw


# --- roots -------------------------------------------------------------------------


def make_root(**changes: object) -> roots.Root:
    root = roots.Root(
        backup_id="b1",
        volume_id="v1",
        parent_id=None,
        size_bytes=1000,
        created_at="2026-11-23T00:00:00Z",
        geometry=Geometry(),
        segments=(None, Ref(bytes(32), bytes(8))),
        key_id=KEYS.id,
    )
    return dataclasses.replace(root, **changes)  # type: ignore[arg-type]


def test_a_root_reads_as_it_was_written() -> None:
    root = make_root(parent_id="b0", consistency_group="g")
    assert roots.decode(roots.encode(root, KEYS), "b1", "roots/b1", KEYS) == root


def test_every_changed_field_of_a_root_is_seen() -> None:
    record = json.loads(roots.encode(make_root(), KEYS))
    for field in record:
        if field in ("format", "key_id"):
            continue
        changed = dict(record, **{field: "other"})
        with pytest.raises(errors.CorruptObject, match="roots/b1"):
            roots.decode(json.dumps(changed).encode(), "b1", "roots/b1", KEYS)


def test_a_root_under_another_name_is_corrupt() -> None:
    with pytest.raises(errors.CorruptObject, match="belongs to b1"):
        roots.decode(roots.encode(make_root(), KEYS), "b2", "roots/b2", KEYS)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3", b"{}", b"\xff\xfe", b'{"format": 1}'])
def test_what_is_no_root_is_corrupt(raw: bytes) -> None:
    with pytest.raises(errors.CorruptObject):
        roots.decode(raw, "b1", "roots/b1", KEYS)


def test_a_newer_root_is_refused() -> None:
    record = json.loads(roots.encode(make_root(), KEYS))
    with pytest.raises(errors.UnsupportedFormat, match="version 2"):
        roots.decode(json.dumps({**record, "format": 2}).encode(), "b1", "roots/b1", KEYS)


def test_the_wrong_key_is_told() -> None:
    other = derive.derive(bytes(32), "default")
    with pytest.raises(errors.WrongKey, match="another master key"):
        roots.decode(roots.encode(make_root(), KEYS), "b1", "roots/b1", other)


# --- names and keys ------------------------------------------------------------------


@given(refs)
def test_names_tell_their_writer(ref: Ref) -> None:
    assert names.token_of(ref.name(Kind.CHUNK)) == ref.token
    assert names.parse_short(ref.short()) == ref
    assert names.token_of(ref.name(Kind.CHUNK) + ".0123abcd.tmp") is None


@given(st.integers(0, 1 << 45))
def test_every_byte_is_in_one_chunk(size: int) -> None:
    geometry = Geometry()
    count = geometry.chunks(size)
    assert count == 0 or (count - 1) * geometry.chunk < size <= count * geometry.chunk
    if count:
        assert geometry.chunks_in(geometry.segments(size) - 1, size).stop == count


def test_every_repository_and_master_key_has_its_own_keys() -> None:
    found = [
        derive.derive(master, repository)
        for master in (bytes(32), derive.PUBLIC_MASTER)
        for repository in ("a", "b")
    ]
    secrets = {value for one in found for value in dataclasses.astuple(one)}
    assert len(secrets) == 6 * len(found) + 1
    assert found[0].block.hex() not in repr(found[0])


# --- golden files ----------------------------------------------------------------------

goldens = pytest.mark.parametrize(
    ("folder", "cipher"), [("golden", Cipher.NONE), ("golden_encrypted", Cipher.AES_256_GCM)]
)


@goldens
def test_the_golden_files_of_version_1_are_still_read(folder: str, cipher: Cipher) -> None:
    store = FileStore(HERE / folder)
    expected = build_patched(repository())
    repo = Repository(store, KEYS)
    assert load_bytes(repo, "patched") == expected
    assert repo.load_root("patched").consistency_group == "group"
    store.close()


@goldens
def test_version_1_is_still_written(folder: str, cipher: Cipher) -> None:
    # All but what zstd is free to compress differently from version to version.
    written = MemoryStore()
    build_patched(Repository(written, dataclasses.replace(KEYS, writes=cipher)))
    golden = FileStore(HERE / folder)
    assert {name for name, _ in golden.list()} == set(written.objects)
    assert bytes(golden.get("roots/patched")) == written.objects["roots/patched"]
    for name, raw in written.objects.items():
        if name.startswith(("chunks/", "patches/")):
            assert bytes(golden.get(name, 0, blocks.HEADER.size)) == raw[: blocks.HEADER.size]
    golden.close()
