"""``[api] auth = keystone``: tokens of OpenStack Keystone are good here, besides lunr's own.

It needs lunr's extra ``keystone``, and in lunr.conf the section that other
OpenStack services have; all that keystonemiddleware.auth_token documents can
stand there::

    [keystone_authtoken]
    www_authenticate_uri = https://keystone.example.org/v3
    auth_url = https://keystone.example.org/v3
    auth_type = password
    username = lunr
    password = SECRET
    user_domain_name = Default
    project_name = service
    project_domain_name = Default

- The token's project is the account, by its id. The account is made when it is
  first used. A token without a project is refused.
- A role of ``[api] admin_roles`` makes an admin, whatever the project. With any
  other role one is a member of the own project.
- What Keystone said of a token is believed for ``token_cache_time`` seconds (300
  unless set): a revoked one works that long. One that expires ends at once, but with a
  service's token in ``X-Service-Token`` beside it, so that a service (Nova) can finish.
- When Keystone can't be asked, its tokens get 503. lunr's own are looked for
  first and never shown to Keystone: nodes and operators go on without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import webob
from keystoneauth1.exceptions import ClientException
from keystonemiddleware import auth_token
from oslo_config import cfg

from lunr.api.services.accounts.service import Accounts
from lunr.api.services.accounts.tokens import Principal
from lunr.common import errors
from lunr.common.config import ConfigOpts

log = logging.getLogger(__name__)

_GROUP = "keystone_authtoken"
#: Of the group, where the operator says nothing. Without a limit, a Keystone that hangs would
#: take the API with it; and who gets a 503 tries again without our help.
_DEFAULTS = {"http_connect_timeout": 5, "http_request_max_retries": 1}


class NotScoped(errors.Unauthorized):
    """The Keystone token is good, but for no project: ask Keystone for one that is scoped to a project."""  # noqa: E501 - it is the message

    code = "not_scoped"


class Keystone:
    """Asks Keystone who holds a token: an :class:`lunr.api.middleware.auth.Identity`.

    Raises:
        errors.ConfigError: the section ``[keystone_authtoken]`` can't be used.
    """

    def __init__(self, conf: ConfigOpts, accounts: Accounts) -> None:
        self._accounts = accounts
        self._admin_roles = frozenset(conf.api.admin_roles)
        try:
            for group, options in auth_token.list_opts():
                conf.register_opts(options, group=group)
            for name, value in _DEFAULTS.items():
                conf.set_default(name, value, group=_GROUP)
            if not (conf[_GROUP].auth_type or conf[_GROUP].auth_section):
                raise errors.ConfigError(reason=f"[{_GROUP}] auth_type is not set")
            # Not delay_auth_decision: with it, a Keystone that is away looks like a bad token.
            settings = {"oslo_config_config": conf, "delay_auth_decision": False}
            self._protocol = auth_token.AuthProtocol(_accept, settings)
        except (ClientException, cfg.Error, auth_token.ConfigurationError, ValueError) as error:
            raise errors.ConfigError(reason=f"[{_GROUP}]: {error}") from error

    def identify(self, environ: dict[str, Any]) -> Principal | None:
        """Who holds the token of the request, as Keystone says.

        Raises:
            NotScoped: the token is good, but for no project.
            errors.NotFound: the project's account was deleted here.
            errors.Unavailable: Keystone can't be asked, or refuses to answer lunr.
        """
        asked = webob.Request(dict(environ))  # a copy: auth_token leaves its own things in it
        try:
            status = asked.get_response(self._protocol).status_code
        except ClientException as error:
            log.error("Keystone can't be asked: %s", error)  # noqa: TRY400 - no defect of ours
            raise _unavailable() from error
        if status == 401:
            return None
        if status != 200:
            raise _unavailable()
        return self._principal(asked.environ["keystone.token_auth"].user)

    def _principal(self, user: Any) -> Principal:
        """Who `user` (keystoneauth1.access.AccessInfo) is here.

        It is what Keystone answered, and not the headers that auth_token makes of
        it: a client can send headers too, and role names can hold the headers' commas.
        """
        if user.project_id is None:
            raise NotScoped
        self._accounts.ensure(user.project_id)
        role = "member" if self._admin_roles.isdisjoint(user.role_names) else "admin"
        return Principal(user.audit_id, role, user.project_id, None)


def _accept(_environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The application that auth_token guards: who comes through is known."""
    start_response("200 OK", [])
    return ()


def _unavailable() -> errors.Unavailable:
    return errors.Unavailable(what="Keystone", reason="the service's log says why; try again")
