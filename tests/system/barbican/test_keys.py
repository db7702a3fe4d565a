"""The master key in Barbican."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lunr.backup import errors
from lunr.backup.keys import from_config, master_keys
from lunr.backup.keys.master_keys import MasterKeys
from lunr.common import config
from tests.system.barbican.conftest import Barbican

OLD, NEW = b"\x80\xffold key".ljust(32, b"\0"), b"\x81\xfenew key".ljust(32, b"\1")
AES = {"secret_type": "symmetric", "algorithm": "aes", "bit_length": 256}


def load(file: Path, key: str, **changes: str) -> MasterKeys:
    text = file.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file.write_text(f"{text}[store]\nkey = {key}\n")
    return from_config.open_master_keys(config.load(["--config-file", str(file)]))


def test_keys_are_fetched_by_id(barbican: Barbican, config_file: Path) -> None:
    new = barbican.store("lunr", NEW, **AES)
    old = barbican.store("lunr", OLD, secret_type="opaque")
    assert load(config_file, f"barbican:{new},{old}") == (NEW, OLD)


def test_a_secret_may_hold_what_a_key_file_holds(barbican: Barbican, config_file: Path) -> None:
    id = barbican.store("lunr", master_keys.text((NEW, OLD)).encode(), secret_type="opaque")
    assert load(config_file, f"barbican:{id}") == (NEW, OLD)


def test_a_secret_that_is_no_key_is_told(barbican: Barbican, config_file: Path) -> None:
    id = barbican.store("lunr", b"hunter2", secret_type="passphrase")
    with pytest.raises(errors.BadKey, match=f"secret {id}.*64 hexadecimal digits") as caught:
        load(config_file, f"barbican:{id}")
    assert "hunter2" not in str(caught.value)


def test_a_secret_that_is_not_there_is_told(config_file: Path) -> None:
    id = "4fd9a5a2-0000-4000-8000-000000000000"
    with pytest.raises(errors.BadKey, match=f"secret {id}"):
        load(config_file, f"barbican:{id}")


def test_anothers_secret_is_refused(barbican: Barbican, config_file: Path) -> None:
    id = barbican.store("stranger", NEW, **AES)
    with pytest.raises(errors.KeyManagerUnavailable, match=r"(?i)forbidden"):
        load(config_file, f"barbican:{id}")


def test_a_wrong_password_is_told(barbican: Barbican, config_file: Path) -> None:
    id = barbican.store("lunr", NEW, **AES)
    with pytest.raises(errors.KeyManagerUnavailable, match="401") as caught:
        load(config_file, f"barbican:{id}", **{"password = lunr": "password = guessed"})
    assert "guessed" not in str(caught.value)


def test_a_barbican_that_is_away_is_told(barbican: Barbican, config_file: Path) -> None:
    id = barbican.store("lunr", NEW, **AES)
    barbican.stop()
    try:
        with pytest.raises(errors.KeyManagerUnavailable, match="does not give") as caught:
            load(config_file, f"barbican:{id}")
    finally:
        barbican.start()
    assert caught.value.retry


def test_no_log_tells_the_key(barbican: Barbican, config_file: Path) -> None:
    id = barbican.store("lunr", NEW, **AES)
    load(config_file, f"barbican:{id}")
    code = (
        "import sys\n"
        "from lunr.backup.keys import from_config\n"
        "from lunr.common import config, log\n"
        "log.setup('DEBUG')\n"
        "assert len(from_config.open_master_keys(config.load(sys.argv[1:]))) == 1\n"
    )
    command = [sys.executable, "-c", code, "--config-file", str(config_file)]
    done = subprocess.run(command, capture_output=True, check=True)
    said = done.stdout + done.stderr
    assert b"new key" not in said
    assert NEW.hex().encode() not in said
    assert b"lunr\n" not in said  # the password
