"""The master keys that the configuration names."""

from __future__ import annotations

from lunr.backup import errors
from lunr.backup.keys import master_keys
from lunr.backup.keys.master_keys import MasterKeys
from lunr.common.config import ConfigOpts


def open_master_keys(conf: ConfigOpts) -> MasterKeys:
    """The master keys at ``[store] key``. Barbican is asked once; the keys are never logged.

    Raises:
        errors.BadKey: no key there can be used.
        errors.KeyManagerUnavailable: Barbican does not answer.
    """

    def fetch(secret_id: str) -> bytes:
        try:
            from lunr.backup.keys.barbican import Barbican
        except ImportError as error:
            raise errors.BadKey(
                source=conf.store.key, reason=f"{error}: install lunr's extra `barbican`."
            ) from error
        return Barbican(conf).fetch(secret_id)

    return master_keys.open_master_keys(conf.store.key, fetch)
