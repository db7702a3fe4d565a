"""Secrets in OpenStack Barbican, fetched with castellan (lunr's extra ``barbican``).

The sections of lunr.conf are those of other OpenStack services, with all options that
castellan documents::

    [store]
    key = barbican:SECRET_ID

    [key_manager]
    auth_type = keystone_password
    auth_url = https://keystone.example.org/v3
    username = lunr
    password = SECRET
    user_domain_name = Default
    project_name = service
    project_domain_name = Default

    [barbican]
    auth_endpoint = https://keystone.example.org/v3
"""

from __future__ import annotations

from castellan import key_manager, options
from castellan.common import exception
from castellan.common.utils import credential_factory

from lunr.backup import errors
from lunr.common.config import ConfigOpts


class Barbican:
    """One key manager, as the configuration names it."""

    def __init__(self, conf: ConfigOpts) -> None:
        options.set_defaults(conf)
        self._conf = conf

    def fetch(self, secret_id: str) -> bytes:
        """The bytes of the secret `secret_id`.

        Raises:
            errors.BadKey: there is no such secret.
            errors.KeyManagerUnavailable: Barbican does not answer, or refuses.
        """
        try:
            context = credential_factory(self._conf)
            payload = key_manager.API(self._conf).get(context, secret_id).get_encoded()
        except exception.ManagedObjectNotFoundError as error:
            raise errors.BadKey(source=f"secret {secret_id}", reason=f"{error}") from error
        except exception.CastellanException as error:
            raise errors.KeyManagerUnavailable(manager="Barbican", reason=f"{error}") from error
        return payload if isinstance(payload, bytes) else str(payload).encode()
