"""Lets a program that was linked with a newer glibc run with this machine's.

A program names the version of glibc that each of its symbols came with. What a UML kernel takes
from 2.38 are old functions under new names, which differ for binary numbers only. They are
pointed to the old ones, in place: nothing in the file moves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

#: The symbols of GLIBC_2.38 that are older ones but for this prefix.
_PREFIX = b"__isoc23_"
_SAME = {_PREFIX + name for name in (b"strtol", b"strtoul", b"strtoll", b"strtoull", b"sscanf")}
#: The version that the older ones have.
_OLD = b"GLIBC_2.2.5"
#: 64 bits, little-endian.
_MAGIC = b"\x7fELF\x02\x01"
_SYMBOL = struct.Struct("<IBBHQQ")
#: What is needed of a library: its version, how many, its name, where they are, where the next is.
_NEED = struct.Struct("<HHIII")
#: One of them: the hash of its name, flags, index, name, where the next one is.
_VERSION = struct.Struct("<IHHII")


class CannotChange(Exception):
    """Why a program can't be made to run with an older glibc."""


@dataclass(frozen=True)
class _Section:
    start: int
    size: int


def lower_glibc(image: bytes, available: tuple[int, int]) -> bytes:
    """The program `image`, such that glibc `available` is enough for it.

    Raises:
        CannotChange: it is no program of that kind, or needs more than such symbols.
    """
    try:
        return _lower(bytearray(image), available)
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise CannotChange(f"this is no program of 64 bits that can be read: {error!r}") from error


def _lower(image: bytearray, available: tuple[int, int]) -> bytes:
    if not image.startswith(_MAGIC):
        raise ValueError("its first bytes are others")
    sections = _sections(image)
    strings = sections[".dynstr"]
    versions = dict(_versions(image, sections[".gnu.version_r"], strings))
    newer = {name for name in versions if _is_newer(name, available)}
    if not newer:
        return bytes(image)
    if _OLD not in versions:
        raise CannotChange(f"it takes nothing from {_OLD.decode()}")
    indexes = {_VERSION.unpack_from(image, versions[name])[2]: name for name in newer}
    symbols, numbers = sections[".dynsym"], sections[".gnu.version"]
    for number in range(symbols.size // _SYMBOL.size):
        (index,) = struct.unpack_from("<H", image, numbers.start + 2 * number)
        if index not in indexes:
            continue
        at = symbols.start + number * _SYMBOL.size
        (place,) = struct.unpack_from("<I", image, at)
        name = _string(image, strings, place)
        if name not in _SAME:
            raise CannotChange(
                f"it needs {name.decode()} of {indexes[index].decode()}, and this machine's"
                f" glibc is {available[0]}.{available[1]}"
            )
        # The older name is the end of the newer one.
        struct.pack_into("<I", image, at, place + len(_PREFIX))
    for name in newer:
        _rename(image, versions[name], versions[_OLD])
    return bytes(image)


def _sections(image: bytearray) -> dict[str, _Section]:
    (table,) = struct.unpack_from("<Q", image, 40)
    size, count, names = struct.unpack_from("<HHH", image, 58)
    rows = [struct.unpack_from("<IIQQQQ", image, table + size * number) for number in range(count)]
    text = _Section(rows[names][4], rows[names][5])
    return {_string(image, text, row[0]).decode(): _Section(row[4], row[5]) for row in rows}


def _string(image: bytearray, strings: _Section, place: int) -> bytes:
    start = strings.start + place
    return bytes(image[start : image.index(0, start, strings.start + strings.size)])


def _versions(image: bytearray, needs: _Section, strings: _Section) -> Iterator[tuple[bytes, int]]:
    """Each version of a library that is needed, and where it is told so."""
    at = needs.start
    while True:
        _, count, _, first, step = _NEED.unpack_from(image, at)
        entry = at + first
        for _ in range(count):
            *_, name, following = _VERSION.unpack_from(image, entry)
            yield _string(image, strings, name), entry
            entry += following
        if not step:
            return
        at += step


def _is_newer(version: bytes, available: tuple[int, int]) -> bool:
    name, _, numbers = version.partition(b"_")
    if name != b"GLIBC" or not numbers[:1].isdigit():
        return False
    major, minor = numbers.split(b".")[:2]
    return (int(major), int(minor)) > available


def _rename(image: bytearray, entry: int, old: int) -> None:
    """Let the version at `entry` be that at `old`; symbols go on to refer to it by its index."""
    _, flags, index, _, following = _VERSION.unpack_from(image, entry)
    value, _, _, name, _ = _VERSION.unpack_from(image, old)
    _VERSION.pack_into(image, entry, value, flags, index, name, following)
