"""The environment variables with which OpenStack's commands log in.

An *openrc* file of a cloud sets them: `swift` reads ``ST_*`` for Swift's own
login and ``OS_*`` for Keystone, `openstack` only the latter
(https://docs.openstack.org/python-openstackclient/latest/cli/man/openstack.html).
"""

from __future__ import annotations

from collections.abc import Mapping

#: The `auth_type` of `[swift]` for an application credential of Keystone; else it is a password.
APPLICATION_CREDENTIAL = "v3applicationcredential"

#: Options of `[swift]`, the variables of the same meaning.
_KEYSTONE = {
    "auth_url": ("OS_AUTH_URL",),
    "user": ("OS_USERNAME",),
    "user_domain_id": ("OS_USER_DOMAIN_ID",),
    "user_domain_name": ("OS_USER_DOMAIN_NAME",),
    "project_id": ("OS_PROJECT_ID", "OS_TENANT_ID"),
    "project_name": ("OS_PROJECT_NAME", "OS_TENANT_NAME"),
    "project_domain_id": ("OS_PROJECT_DOMAIN_ID",),
    "project_domain_name": ("OS_PROJECT_DOMAIN_NAME",),
    "application_credential_id": ("OS_APPLICATION_CREDENTIAL_ID",),
    "region_name": ("OS_REGION_NAME",),
    "cacert": ("OS_CACERT",),
}


def swift_options(env: Mapping[str, str]) -> dict[str, str]:
    """The options of the group ``[swift]``, with ``key`` for the password or secret.

    Args:
        env: variables. A complete login of Swift's own has precedence over one of Keystone, as
            in `swift`.

    Returns:
        The options; empty if no variable has an authentication URL.
    """
    if env.get("ST_AUTH") and (env.get("ST_USER") or not env.get("OS_AUTH_URL")):
        return {
            "auth_url": env["ST_AUTH"],
            "auth_version": env.get("ST_AUTH_VERSION", "1"),
            "user": env.get("ST_USER", ""),
            "key": env.get("ST_KEY", ""),
        }
    if not env.get("OS_AUTH_URL"):
        return {}
    options = {
        option: next((env[name] for name in names if env.get(name)), "")
        for option, names in _KEYSTONE.items()
    }
    for whose in ("user", "project"):
        if not options[f"{whose}_domain_id"] and not options[f"{whose}_domain_name"]:
            options[f"{whose}_domain_name"] = "Default"
    # OS_ENDPOINT_TYPE is the older name; its values end in URL, such as publicURL.
    interface = env.get("OS_INTERFACE") or env.get("OS_ENDPOINT_TYPE") or "public"
    options |= {
        "auth_version": env.get("OS_IDENTITY_API_VERSION") or "3",
        "interface": interface.removesuffix("URL"),
        "key": env.get("OS_PASSWORD", ""),
    }
    if env.get("OS_AUTH_TYPE") == APPLICATION_CREDENTIAL or (
        options["application_credential_id"] and not options["user"]
    ):
        options["auth_type"] = APPLICATION_CREDENTIAL
        options["key"] = env.get("OS_APPLICATION_CREDENTIAL_SECRET", "")
    return options
