"""Secrets are sealed, with a key that others can't read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lunr.api.secret_box import SecretBox, chap_secret
from lunr.common import errors


def _key(path: Path, content: str = "k" * 44, mode: int = 0o600) -> SecretBox:
    path.touch(mode=0o600)
    path.write_text(content)
    path.chmod(mode)
    return SecretBox(str(path))


def test_what_was_sealed_can_be_opened_with_the_same_key_only(tmp_path: Path) -> None:
    sealed = _key(tmp_path / "a").seal("secret")
    assert "secret" not in sealed
    assert _key(tmp_path / "b").open(sealed) == "secret"
    with pytest.raises(errors.ConfigError, match="not the key"):
        _key(tmp_path / "c", "x" * 44).open(sealed)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(errors.ConfigError, match="chmod 0600"):
        _key(tmp_path / "key", mode=mode).check()


def test_a_missing_or_short_key_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="lunr-manage key"):
        SecretBox(str(tmp_path / "none")).check()
    with pytest.raises(errors.ConfigError, match="too short"):
        _key(tmp_path / "key", "short").check()


def test_chap_secrets_fit_every_initiator_and_differ() -> None:
    made = {chap_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9]{16}", secret) for secret in made)
