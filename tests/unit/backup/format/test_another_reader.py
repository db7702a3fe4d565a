"""A reader written from docs/format.md alone: it imports nothing of lunr's format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.unit.backup.support import build_patched, repository

HERE = Path(__file__).parent
MASTER = blake3(b"lunr public master key, version 1").digest()


def number(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "little")


def key(purpose: str, length: int = 32) -> bytes:
    context = "lunr 2026-11 backup format 1 " + purpose
    return blake3(MASTER + b"default", derive_key_context=context).digest(length=length)


def keyed(purpose: str, data: bytes) -> bytes:
    return blake3(data, key=key(purpose)).digest()


def decrypt(raw: bytes, header: int, name: str, part: int, start: int, end: int) -> bytes:
    """Part number `part` of an object, at `start` to `end`."""
    digest, token = (bytes.fromhex(half) for half in name.split("."))
    own = keyed("cipher", raw[:header] + digest + token)
    return AESGCM(own).decrypt(part.to_bytes(12, "little"), raw[start:end], None)


class Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def named(self, kind: str, name: str) -> bytes:
        return (self.folder / kind / name[:2] / name).read_bytes()

    def blocks(self, kind: str, digest: bytes, token: bytes) -> list[bytes]:
        name = f"{digest.hex()}.{token.hex()}"
        raw = self.named(kind, name)
        assert raw[:5] == b"LUNR\x01"
        assert raw[5] == (1 if kind == "chunks" else 2)
        encrypted = raw[6] == 1
        count, plain, index = number(raw, 12, 4), number(raw, 16, 4), number(raw, 20, 4)
        assert index == 36 * count + 16 * encrypted
        hashes, at, found = [], 28 + index, []
        entries = raw[28:at]
        if encrypted:
            entries = decrypt(raw, 28, name, (1 << 96) - 1, 28, at)
        for block in range(count):
            hashes.append(entries[36 * block : 36 * block + 32])
            length = number(entries, 36 * block + 32, 4)
            end = at + (length & 0x7FFFFFFF)
            frame = decrypt(raw, 28, name, block, at, end) if encrypted else raw[at:end]
            at = end
            found.append(zstandard.decompress(frame) if length >> 31 else frame)
            assert keyed("block", found[-1]) == hashes[-1]
        assert at == len(raw)
        assert sum(map(len, found)) == plain
        assert keyed("chunk", b"".join(hashes)) == digest
        return found

    def segment(self, name: str, size: int, block: int, chunk: int) -> list[bytes]:
        raw = self.named("segments", name)
        assert raw[:6] == b"LSEG\x01\x01"
        assert raw[7] == 0
        frame = decrypt(raw, 12, name, 0, 12, len(raw)) if raw[6] == 1 else raw[12:]
        body = zstandard.decompress(frame)
        assert len(body) == number(raw, 8, 4)
        assert keyed("segment", body).hex() == name.partition(".")[0]
        chunks, tokens_, patches_ = number(body, 0, 4), number(body, 4, 2), number(body, 6, 2)
        at = 8
        tokens = [body[at + 8 * i : at + 8 * i + 8] for i in range(tokens_)]
        at += 8 * tokens_

        def ref(at: int) -> tuple[bytes, bytes]:
            return body[at : at + 32], tokens[number(body, at + 32, 2)]

        patches = [ref(at + 34 * i) for i in range(patches_)]
        at += 34 * patches_
        found = []
        for _ in range(chunks):
            length = min(chunk, size)
            size -= length
            kind = body[at]
            at += 1
            if kind == 0:
                found.append(bytes(length))
                continue
            digest = body[at : at + 32]
            if kind == 1:
                found.append(b"".join(self.blocks("chunks", *ref(at))))
                at += 34
            else:
                at += 32
                data = bytearray(length)
                if kind == 2:
                    base = b"".join(self.blocks("chunks", *ref(at)))[:length]
                    data[: len(base)] = base
                    at += 34
                pieces = number(body, at, 2)
                at += 2
                for _ in range(pieces):
                    first, count = number(body, at, 2), number(body, at + 2, 2)
                    patch, start = number(body, at + 4, 2), number(body, at + 6, 4)
                    piece = bytes(count * block)
                    if patch != 0xFFFF:
                        plain = self.blocks("patches", *patches[patch])
                        piece = b"".join(plain[start : start + count])
                    data[first * block : first * block + len(piece)] = piece
                    at += 10
                found.append(bytes(data))
            assert len(found[-1]) == length
            parts = [found[-1][i : i + block] for i in range(0, length, block)]
            assert keyed("chunk", b"".join(keyed("block", part) for part in parts)) == digest
        assert at == len(body)
        return found

    def backup(self, backup_id: str) -> bytes:
        root = json.loads((self.folder / "roots" / backup_id).read_bytes())
        digest = root.pop("digest")
        canonical = json.dumps(root, sort_keys=True, separators=(",", ":")).encode()
        assert keyed("root", canonical).hex() == digest
        assert root["format"] == 1
        assert root["key_id"] == key("key id", 8).hex()
        left, data = root["size_bytes"], []
        for name in root["segments"]:
            part = min(left, root["segment_chunks"] * root["chunk_size"])
            if name is None:
                data.append(bytes(part))
            else:
                data += self.segment(name, part, root["block_size"], root["chunk_size"])
            left -= part
        assert left == 0
        return b"".join(data)


@pytest.mark.parametrize("folder", ["golden", "golden_encrypted"])
def test_the_document_is_enough_to_read_a_backup(folder: str) -> None:
    assert Reader(HERE / folder).backup("patched") == build_patched(repository())
