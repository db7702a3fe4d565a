"""A program of a newer glibc is made one of an older: its symbols are renamed, in place."""

from __future__ import annotations

import struct

import pytest

from tools.virtual.elf import CannotChange, lower_glibc

OLD, NEW = 2, 3


def program(*symbols: tuple[bytes, int], versions: tuple[bytes, ...] = ()) -> bytes:
    """The parts of an ELF file that tell what it needs of libc.

    Args:
        symbols: each one's name and the index of its version.
        versions: those with the indexes 2, 3, ….
    """
    versions = versions or (b"GLIBC_2.2.5", b"GLIBC_2.38")
    strings = b"\0" + b"".join(name + b"\0" for name in (*(n for n, _ in symbols), *versions))

    def place(name: bytes) -> int:
        return strings.index(b"\0" + name + b"\0") + 1

    table = b"".join(struct.pack("<IBBHQQ", place(name), 0x12, 0, 0, 0, 0) for name, _ in symbols)
    numbers = b"".join(struct.pack("<H", version) for _, version in symbols)
    needs = struct.pack("<HHIII", 1, len(versions), 0, 16, 0) + b"".join(
        struct.pack("<IHHII", 0xABC00 + n, 0, n, place(name), 16)
        for n, name in enumerate(versions, OLD)
    )
    contents = {
        ".dynstr": strings,
        ".dynsym": table,
        ".gnu.version": numbers,
        ".gnu.version_r": needs,
    }
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*contents, ".shstrtab"))
    body, rows = b"", b""
    for name, content in (*contents.items(), (".shstrtab", names)):
        place_of_name = names.index(name.encode() + b"\0")
        rows += struct.pack("<I20xQQ24x", place_of_name, 64 + len(body), len(content))
        body += content
    header = struct.pack("<16s24xQ10xHHH", b"\x7fELF\x02\x01", 64 + len(body), 64, 5, 4)
    return header.ljust(64, b"\0") + body + rows


def needed(image: bytes) -> list[tuple[bytes, bytes]]:
    """Each symbol and its version, as the loader reads them."""
    (table,) = struct.unpack_from("<Q", image, 40)
    starts = [struct.unpack_from("<Q", image, table + 64 * n + 24)[0] for n in range(5)]
    strings, symbols, numbers, needs, _ = starts

    def text(place: int) -> bytes:
        start = strings + place
        return image[start : image.index(0, start)]

    count = struct.unpack_from("<HH", image, needs)[1]
    entries = [struct.unpack_from("<IHHII", image, needs + 16 * (n + 1)) for n in range(count)]
    for value, _, _, name, _ in entries:  # the loader compares the hash before the name
        assert (value == 0xABC00 + OLD) == (text(name) == b"GLIBC_2.2.5")
    versions = {index: text(name) for _, _, index, name, _ in entries}
    return [
        (
            text(struct.unpack_from("<I", image, symbols + 24 * n)[0]),
            versions[struct.unpack_from("<H", image, numbers + 2 * n)[0]],
        )
        for n in range((numbers - symbols) // 24)
    ]


def test_new_names_become_the_old_ones_and_nothing_else_changes() -> None:
    image = program((b"read", OLD), (b"__isoc23_strtol", NEW), (b"__isoc23_sscanf", NEW))
    changed = lower_glibc(image, (2, 36))
    assert len(changed) == len(image)
    old = b"GLIBC_2.2.5"
    assert needed(changed) == [(b"read", old), (b"strtol", old), (b"sscanf", old)]


@pytest.mark.parametrize("available", [(2, 38), (2, 41), (3, 0)])
def test_a_program_that_runs_as_it_is_stays_as_it_is(available: tuple[int, int]) -> None:
    image = program((b"read", OLD), (b"__isoc23_strtol", NEW))
    assert lower_glibc(image, available) == image


def test_a_symbol_that_is_really_new_is_refused() -> None:
    image = program((b"__isoc23_strtol", NEW), (b"pidfd_spawn", NEW))
    with pytest.raises(CannotChange, match=r"pidfd_spawn of GLIBC_2\.38.*glibc is 2\.36"):
        lower_glibc(image, (2, 36))


def test_a_program_without_an_old_version_to_point_to_is_refused() -> None:
    image = program((b"__isoc23_strtol", NEW), versions=(b"GLIBC_2.34", b"GLIBC_2.38"))
    with pytest.raises(CannotChange, match=r"nothing from GLIBC_2\.2\.5"):
        lower_glibc(image, (2, 36))


@pytest.mark.parametrize("image", [b"", b"#!/bin/sh\n", program((b"read", OLD))[:150]])
def test_what_is_no_such_program_is_refused(image: bytes) -> None:
    with pytest.raises(CannotChange, match="no program"):
        lower_glibc(image, (2, 36))
