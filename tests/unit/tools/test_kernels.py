"""The VM's kernel: the fastest that can be had and boots; what was fetched is kept and checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tools.virtual import kernels, uml
from tools.virtual.kernels import Archive, Cache, Package
from tools.virtual.launch import CannotRun


def packed(suite: str, version: str) -> Package:
    """A package whose content is its version."""
    return Package(suite, version, hashlib.sha256(version.encode()).hexdigest())


FAST, SLOW = packed("sid", "7.2um1"), packed("trixie", "6.12um1")


class FakeArchive(Archive):
    """Has the versions that are given, and for each release the newest one."""

    def __init__(self, *versions: str, **newest: str) -> None:
        self.versions = versions
        self.newest = newest
        self.asked: list[str] = []

    def _write(self, package: Package, folder: Path) -> Path:
        path = folder / package.name
        path.write_text(package.version)
        return path

    def fetch(self, package: Package, folder: Path) -> Path:
        self.asked.append(package.version)
        if package.version not in self.versions:
            raise CannotRun("gone")
        return self._write(package, folder)

    def fetch_newest(self, suite: str, folder: Path) -> tuple[Package, Path]:
        self.asked.append(suite)
        if suite not in self.newest:
            raise CannotRun("no network")
        package = packed(suite, self.newest[suite])
        return package, self._write(package, folder)


@pytest.fixture(autouse=True)
def two_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tested packages, which need no unpacking."""
    monkeypatch.setattr(kernels, "TESTED", (FAST, SLOW))

    def unpack(package: Path, folder: Path) -> uml.Kernel:
        folder.mkdir(exist_ok=True)
        return uml.Kernel(folder / package.read_text())

    monkeypatch.setattr(kernels, "unpack", unpack)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def choose(archive: Archive, cache: Cache, tmp_path: Path, *bad: str) -> str:
    """The version that is chosen when the `bad` ones do not boot."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    ways = kernels.candidates(cache, archive, scratch)
    kernel = kernels.choose(ways, tmp_path / "uml", lambda one: one.version not in bad)
    assert (tmp_path / "uml" / "chosen").read_text().strip() == kernel.version
    return kernel.version


def test_the_fastest_is_taken_and_fetched_once(cache: Cache, tmp_path: Path) -> None:
    archive = FakeArchive("7.2um1", "6.12um1")
    assert choose(archive, cache, tmp_path) == "7.2um1"
    assert choose(archive, cache, tmp_path) == "7.2um1"
    assert archive.asked == ["7.2um1"]


@pytest.mark.parametrize(
    ("archive", "bad", "version"),
    [
        (FakeArchive("6.12um1", sid="7.4um1"), (), "7.4um1"),
        (FakeArchive("6.12um1", sid="7.4um1"), ("7.4um1",), "6.12um1"),
        (FakeArchive("6.12um1"), (), "6.12um1"),
        (FakeArchive("7.2um1", "6.12um1", sid="7.2um1"), ("7.2um1",), "6.12um1"),
        (FakeArchive(trixie="6.12um2"), (), "6.12um2"),
    ],
)
def test_when_one_is_gone_or_does_not_boot_the_next_is_tried(
    archive: FakeArchive, bad: tuple[str, ...], version: str, cache: Cache, tmp_path: Path
) -> None:
    assert choose(archive, cache, tmp_path, *bad) == version


def test_without_any_it_says_so(
    cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CannotRun, match="no user-mode-linux that runs"):
        choose(FakeArchive("7.2um1"), cache, tmp_path, "7.2um1")
    said = capsys.readouterr().err
    assert "7.2um1 does not boot" in said
    assert "no network" in said
    assert not (tmp_path / "uml" / "chosen").exists()


def test_what_was_the_newest_once_is_not_asked_for_again(cache: Cache, tmp_path: Path) -> None:
    assert choose(FakeArchive(sid="7.10um1"), cache, tmp_path) == "7.10um1"
    assert choose(FakeArchive(sid="7.9um1"), cache, tmp_path, "7.10um1") == "7.9um1"
    archive = FakeArchive()
    assert choose(archive, cache, tmp_path) == "7.10um1"
    assert archive.asked == ["7.2um1"]
    recorded = (cache.folder / "sid" / f"{kernels.PACKAGE}_7.10um1_amd64.sha256").read_text()
    newest = packed("sid", "7.10um1")
    assert recorded.split() == [newest.sha256, newest.name]


def test_a_package_that_was_damaged_is_fetched_again(cache: Cache, tmp_path: Path) -> None:
    choose(FakeArchive("7.2um1"), cache, tmp_path)
    kept = cache.find(FAST)
    assert kept is not None
    kept.write_text("7.2um")
    archive = FakeArchive("7.2um1")
    assert choose(archive, cache, tmp_path) == "7.2um1"
    assert archive.asked == ["7.2um1"]
    assert cache.find(FAST) == kept


URIS = """'http://mirror.test/debian/dists/bookworm/InRelease' mirror.test_debian_InRelease 0
'http://mirror.test/debian/dists/bookworm-updates/InRelease' mirror.test_updates 0
'http://security.test/debian-security/dists/bookworm-security/InRelease' security.test 0
'https://other.test/apt/dists/nodistro/InRelease' other.test 0
'http://second.test/pool/debian/dists/stable/InRelease' second.test 0
"""


def test_the_mirrors_are_those_of_debian_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_output", lambda *command: URIS)
    monkeypatch.setattr(kernels, "_read", lambda path: 'ID=debian\nVERSION_CODENAME="bookworm"\n')
    assert Archive().mirrors() == ["http://mirror.test/debian", "http://second.test/pool/debian"]


def test_the_folder_for_all_checkouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert kernels.cache_folder() == Path("/var/cache/me/lunr/uml")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert kernels.cache_folder() == Path.home() / ".cache/lunr/uml"


@pytest.mark.parametrize("version", ["nosuch", "5.10um3"])
def test_a_version_without_a_known_sum_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uml, "KERNELS", tmp_path)
    assert kernels.main([version]) == 1


def test_what_was_chosen_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uml, "KERNELS", tmp_path)
    monkeypatch.setattr(kernels, "choose", None)
    (tmp_path / "chosen").write_text("7.2um1\n")
    assert kernels.main([]) == 0
