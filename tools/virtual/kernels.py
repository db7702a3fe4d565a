"""Chooses a UML kernel that runs here, and puts it in .vm/uml; tools/setup --vm starts it.

usage: kernels.py [VERSION]

They are Debian's packages user-mode-linux, by how fast they are: `sid`'s, from 7.2 on, needs half
of the time that those of the stable releases need. But a package in sid is replaced by the next
version without notice. So each kind is tried in turn, as the version that was tested and as what
there is now, until one boots. With VERSION, only that.

What was fetched stays in ~/.cache/lunr: for other checkouts, and for when the archive has it no
more.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.virtual import elf, uml
from tools.virtual.launch import CannotRun, Order

PACKAGE = "user-mode-linux"
#: The seconds that a kernel has to boot.
_BOOT = 120.0
#: What a machine's list of packages may call Debian's own archive, besides its release's name.
_SUITES = {"stable", "testing", "unstable", "sid"}
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_APT_HELPER = "/usr/lib/apt/apt-helper"


@dataclass(frozen=True)
class Package:
    """A version of user-mode-linux for amd64, and the release of Debian that it is of."""

    suite: str
    version: str
    sha256: str

    @property
    def name(self) -> str:
        return f"{PACKAGE}_{self.version}_amd64.deb"


#: What tests/vm passed with, the fastest first.
TESTED = (
    Package("sid", "7.2um1", "f947c9244fd79d481299df2ad68961f6b3b7703bff38c4b0e726f861161da62c"),
    Package(
        "trixie", "6.12um1+b22", "6930e97133531bab93f83b6d691a94f5872505d8f5d88c1f3f1296da0820a3a0"
    ),
    Package(
        "bookworm", "6.1um4+b13", "0ce700f835c385ab09860ad33137817402403a29e424177510244bd75a81c687"
    ),
)


def _say(text: str) -> None:
    print(f"tools/setup: {text}", file=sys.stderr)


class Cache:
    """The packages that were fetched, in a folder for each release; beside each is its sum."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, package: Package) -> Path | None:
        """The file of `package`, if it is there and whole."""
        path = self.folder / package.suite / package.name
        return path if path.exists() and sum_of(path) == package.sha256 else None

    def packages(self, suite: str) -> list[Package]:
        """What was fetched of `suite`, the newest first."""
        packages = []
        for path in (self.folder / suite).glob(f"{PACKAGE}_*.deb"):
            recorded = path.with_suffix(".sha256")
            if recorded.exists():
                version = path.name.split("_")[1]
                packages.append(Package(suite, version, recorded.read_text().split()[0]))
        return sorted(packages, key=lambda package: _order(package.version), reverse=True)

    def keep(self, package: Package, path: Path) -> Path:
        """Move the file at `path` here, and record its sum."""
        kept = self.folder / package.suite / package.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        # From another file system, and several checkouts may do so at once.
        with (
            path.open("rb") as source,
            tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as new,
        ):
            shutil.copyfileobj(source, new)
        kept.with_suffix(".sha256").write_text(f"{package.sha256}  {package.name}\n")
        Path(new.name).chmod(0o644)
        Path(new.name).replace(kept)
        return kept


def _order(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def sum_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Archive:
    """Debian's archive, at the mirror that this machine's lists of packages name."""

    def mirrors(self) -> list[str]:
        """The addresses of this machine's mirrors of Debian's own archive."""
        uris = _output("apt-get", "--print-uris", "update")
        release = re.search(r'^VERSION_CODENAME="?([a-z]+)', _read("/etc/os-release"), re.MULTILINE)
        suites = _SUITES | ({release[1]} if release else set())
        found = re.findall(r"^'(\S+?)/dists/([^/]+)/(?:In)?Release'", uris, re.MULTILINE)
        return list(dict.fromkeys(mirror for mirror, suite in found if suite in suites))

    def fetch(self, package: Package, folder: Path) -> Path:
        """Fetch a package whose sum is known.

        Raises:
            CannotRun: it is not there (any more), or another one.
        """
        target = folder / package.name
        place = f"pool/main/u/{PACKAGE}/{package.name}"
        for mirror in self.mirrors():
            # It checks the sum, too.
            command = [_APT_HELPER, "download-file", f"{mirror}/{place}", str(target)]
            if _succeeds(*command, f"SHA256:{package.sha256}") and sum_of(target) == package.sha256:
                return target
        raise CannotRun(f"{PACKAGE} {package.version} can't be fetched")

    def fetch_newest(self, suite: str, folder: Path) -> tuple[Package, Path]:
        """Fetch what `suite` has now; that it is Debian's is what apt verifies.

        Raises:
            CannotRun: there is no such release, package or network.
        """
        for place in ("lists/partial", "cache/archives/partial"):
            (folder / place).mkdir(parents=True)
        signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
        lines = [f"deb {signed}{mirror} {suite} main\n" for mirror in self.mirrors()]
        (folder / "sources.list").write_text("".join(lines))
        options = {
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": folder / "lists",
            "Dir::Cache": folder / "cache",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
        if not lines or not _succeeds(*apt, "update"):
            raise CannotRun(f"no mirror of Debian has {suite}: is the network there?")
        if not _succeeds(*apt, "download", PACKAGE, folder=folder):
            raise CannotRun(f"{suite} has no {PACKAGE} that can be fetched")
        (path,) = folder.glob(f"{PACKAGE}_*.deb")
        version = _output("dpkg-deb", "--field", str(path), "Version").strip()
        return Package(suite, version, sum_of(path)), path


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _output(*command: str) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    return done.stdout


def _succeeds(*command: str, folder: Path | None = None) -> bool:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


def candidates(cache: Cache, archive: Archive, scratch: Path) -> Iterator[Callable[[], Path]]:
    """Ways to a package's file, in the order in which to try them; each may raise CannotRun."""
    for tested in TESTED:
        yield partial(_get, tested, cache, archive, scratch)
        for package in cache.packages(tested.suite):
            if package.version != tested.version:
                yield partial(_get, package, cache, archive, scratch)
        yield partial(_get_newest, tested.suite, cache, archive, scratch)


def _get(package: Package, cache: Cache, archive: Archive, scratch: Path) -> Path:
    path = cache.find(package)
    if path is None:
        _say(f"fetching {PACKAGE} {package.version} for the VM")
        path = cache.keep(package, archive.fetch(package, scratch))
    return path


def _get_newest(suite: str, cache: Cache, archive: Archive, scratch: Path) -> Path:
    _say(f"fetching the newest {PACKAGE} of {suite} for the VM")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        package, path = archive.fetch_newest(suite, Path(folder))
        if any(package.version == tested.version for tested in TESTED):
            raise CannotRun(f"{suite} has no other version than {package.version}")
        return cache.keep(package, path)


def unpack(package: Path, kernels: Path) -> uml.Kernel:
    """Unpack a package's file into a folder of `kernels`, such that it runs here.

    Raises:
        CannotRun: it can't be unpacked, or can't run with this machine's glibc.
    """
    kernel = uml.Kernel(kernels / package.name.split("_")[1])
    if kernel.folder.exists():
        return kernel
    kernels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kernels) as name:
        scratch = Path(name)
        if not _succeeds("dpkg", "-x", str(package), str(scratch / "package")):
            raise CannotRun(f"{package.name} can't be unpacked")
        new = uml.Kernel(scratch / "new")
        new.folder.mkdir()
        program = (scratch / "package/usr/bin/linux.uml").read_bytes()
        try:
            new.program.write_bytes(elf.lower_glibc(program, _glibc()))
        except elf.CannotChange as error:
            raise CannotRun(f"{package.name} can't run here: {error}") from error
        new.program.chmod(0o755)
        (scratch / "package/usr/lib/uml/modules").rename(new.modules)
        new.folder.rename(kernel.folder)
    return kernel


def _glibc() -> tuple[int, int]:
    """The version of this machine's glibc."""
    major, minor = (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ").split(".")[:2]
    return int(major), int(minor)


def boots(kernel: uml.Kernel) -> bool:
    """Whether `kernel` comes up on this machine; if not, what it says is on standard error."""
    return uml.run(Order(["true"], timeout=_BOOT), kernel) == 0


def choose(
    ways: Iterator[Callable[[], Path]], kernels: Path, check: Callable[[uml.Kernel], bool] = boots
) -> uml.Kernel:
    """Record in `kernels` the first kernel that can be had and boots.

    Args:
        ways: from :func:`candidates`.
        kernels: where they are unpacked.
        check: whether one boots.

    Raises:
        CannotRun: there is none; why each is not, is on standard error.
    """
    for get in ways:
        try:
            kernel = unpack(get(), kernels)
        except CannotRun as error:
            _say(str(error))
            continue
        if check(kernel):
            (kernels / "chosen").write_text(f"{kernel.version}\n")
            return kernel
        _say(f"{PACKAGE} {kernel.version} does not boot here, see above")
    raise CannotRun(f"there is no {PACKAGE} that runs on this machine, see above")


def cache_folder() -> Path:
    """Where packages are kept for all checkouts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lunr" / "uml"


def main(arguments: Sequence[str]) -> int:
    if not arguments and (uml.KERNELS / "chosen").exists():
        return 0
    cache, archive = Cache(cache_folder()), Archive()
    with tempfile.TemporaryDirectory(prefix="lunr-kernel-") as name:
        scratch = Path(name)
        ways = candidates(cache, archive, scratch)
        if arguments:
            wanted = [package for package in TESTED if package.version == arguments[0]]
            ways = (partial(_get, package, cache, archive, scratch) for package in wanted)
        try:
            kernel = choose(ways, uml.KERNELS)
        except CannotRun as error:
            _say(str(error))
            return 1
    _say(f"the VM runs {PACKAGE} {kernel.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
