from __future__ import annotations

from pathlib import Path

import pytest

from lunr.common.errors import ConfigError
from lunr.live.daemon import settings

GOOD = """
[store]
url = "files:/srv/backups"

[[machine]]
name = "web"
qmp = "/run/web.qmp"
every = 600
disks = ["a", "b"]

[[machine]]
name = "db"
qmp = "/run/db.qmp"
keep = 24
agent = "/run/db.agent"
"""


def load(folder: Path, text: str) -> settings.Settings:
    path = folder / "live.toml"
    path.write_text(text)
    return settings.load(path)


def test_a_good_one(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    assert found.store == settings.Store("files:/srv/backups")
    web, db = found.machines
    assert (web.name, web.every, web.keep, web.disks) == ("web", 600, 0, ["a", "b"])
    assert (db.every, db.keep, db.agent) == (3600, 24, "/run/db.agent")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[store]", "[stores]", "stores: there are"),
        ('url = "files:/srv/backups"', "", "url"),
        ('name = "web"', 'name = "../web"', "is no id"),
        ('name = "db"', 'name = "web"', "same name"),
        ("every = 600", "every = 0", "1 or more"),
        ("every = 600", "every = true", "every can't be True"),
        ("every = 600", 'every = "1h"', "every can't be"),
        ('disks = ["a", "b"]', "disks = [1]", "disks can't be"),
        ("keep = 24", "kept = 24", "kept is not one of"),
        ('qmp = "/run/db.qmp"', "", "one of qmp and libvirt"),
        ("keep = 24", 'libvirt = "db"', "one of qmp and libvirt"),
        ("keep = 24", "scratch_limit = -1", "0 or more"),
        ("keep = 24", "scratch_reserve = -2", "-1 or more"),
        ("[[machine]]", '[service]\nurl = "http://x"\n[[machine]]', "account"),
        ("[store]", "[store", "live.toml"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, GOOD.replace(old, new, 1))


def test_no_machine_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        load(tmp_path, '[store]\nurl = "files:/x"\n')
    with pytest.raises(ConfigError, match="No such file"):
        settings.load(tmp_path / "nowhere")


SERVICE = """
[service]
url = "http://127.0.0.1:8080"
account = "acme"
token_file = "/etc/lunr/live.token"
"""


def test_the_repository_is_the_services_account(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).repository == "default"
    assert load(tmp_path, GOOD + SERVICE).repository == "acme"
    other = GOOD.replace("[store]", '[store]\nrepository = "other"')
    assert load(tmp_path, other).repository == "other"
    with pytest.raises(ConfigError, match="is the account of"):
        load(tmp_path, other + SERVICE)
