"""What openrc files of clouds say."""

from __future__ import annotations

import pytest

from lunr.common.openstack import swift_options

PASSWORD = {
    "OS_AUTH_URL": "https://keystone/v3",
    "OS_USERNAME": "me",
    "OS_PASSWORD": "secret",
}


def test_a_domain_may_be_named_by_its_id() -> None:
    named = {"OS_USER_DOMAIN_NAME": "acme", "OS_PROJECT_DOMAIN_ID": "d1", "OS_PROJECT_NAME": "p"}
    options = swift_options(PASSWORD | named)
    assert (options["user_domain_name"], options["user_domain_id"]) == ("acme", "")
    assert (options["project_domain_name"], options["project_domain_id"]) == ("", "d1")
    assert (options["project_name"], options["key"]) == ("p", "secret")
    assert (options["auth_version"], options["interface"]) == ("3", "public")


def test_without_a_word_of_them_domains_are_the_default() -> None:
    options = swift_options(PASSWORD)
    assert options["user_domain_name"] == options["project_domain_name"] == "Default"


@pytest.mark.parametrize("name", ["OS_PROJECT_ID", "OS_TENANT_ID"])
def test_a_project_may_be_named_by_its_id(name: str) -> None:
    assert swift_options(PASSWORD | {name: "p1"})["project_id"] == "p1"


@pytest.mark.parametrize("auth_type", ["", "v3applicationcredential"])
def test_an_application_credential(auth_type: str) -> None:
    options = swift_options(
        {
            "OS_AUTH_URL": "https://keystone/v3",
            "OS_AUTH_TYPE": auth_type,
            "OS_APPLICATION_CREDENTIAL_ID": "c1",
            "OS_APPLICATION_CREDENTIAL_SECRET": "secret",
        }
    )
    assert options["auth_type"] == "v3applicationcredential"
    assert (options["application_credential_id"], options["key"]) == ("c1", "secret")


@pytest.mark.parametrize(
    ("name", "value", "interface"),
    [
        ("OS_INTERFACE", "internal", "internal"),
        ("OS_ENDPOINT_TYPE", "publicURL", "public"),
        ("OS_ENDPOINT_TYPE", "internalURL", "internal"),
    ],
)
def test_the_interface(name: str, value: str, interface: str) -> None:
    assert swift_options(PASSWORD | {name: value})["interface"] == interface


def test_swifts_own_login_counts_first_when_it_is_whole() -> None:
    own = {"ST_AUTH": "https://swift/auth/v1.0", "ST_USER": "a:b", "ST_KEY": "k"}
    assert swift_options(PASSWORD | own)["auth_url"] == "https://swift/auth/v1.0"
    assert swift_options(PASSWORD | own | {"ST_USER": ""})["auth_url"] == "https://keystone/v3"
    assert swift_options({"ST_AUTH": "https://swift/auth/v1.0"})["auth_version"] == "1"
    assert swift_options({}) == {}
