"""What is here needs kernel modules and empty disks: `tools/test vm` runs it in the VM.

The VM's disks are shared by all tests, one after another: each fixture makes
what it needs and removes it. See docs/development.md.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "LUNR_VM" not in os.environ:
    collect_ignore_glob = ["*"]


#: Discards to zeros; can neither discard nor write zeros by itself; a small one. In UML these are
#: links, and LVM and /sys use the devices' own names.
DISK, PLAIN_DISK, SMALL_DISK = (Path(f"/dev/vd{letter}").resolve() for letter in "abc")


@pytest.fixture
def disk() -> Path:
    return DISK


@pytest.fixture
def plain_disk() -> Path:
    return PLAIN_DISK


@pytest.fixture
def small_disk() -> Path:
    return SMALL_DISK
