"""Which files need which."""

from __future__ import annotations

from tools.testing.reach import Sources, distances

FILES = {
    "setup.cfg": "console_scripts =\n    lunr-api = lunr.api.main:main\n",
    "etc/lunr.conf.sample": "[api]\n",
    "etc/systemd/lunr-api.service": "ExecStart=lunr-api\n",
    "docs/api.md": "see lunr/api/main.py",
    "lunr/__init__.py": "",
    "lunr/api/__init__.py": "",
    "lunr/api/main.py": "from lunr.common import errors\n",
    "lunr/common/__init__.py": "",
    "lunr/common/errors.py": '"""Not lunr.api.main."""\n',
    "tools/swift": "exec python -m tools.services.swift",
    "tools/services/swift.py": "from ..other import thing\n",
    "tools/other.py": "thing = 1\n",
    "tools/demo": 'exec "$top/tools/services/swift.py"',
    "tests/conftest.py": "pytest_plugins = ['tests.support.services']\n",
    "tests/support/services.py": "def start():\n    call_tool('swift', 'start')\n",
    "tests/unit/test_a.py": "def test():\n    import lunr.api.main\n",
    "tests/system/conftest.py": "",
    "tests/system/test_b.py": "COMMAND = ['lunr-api']\n",
    "tests/system/test_c.py": "run(TOP / 'tools' / 'demo', 'etc/systemd')\n",
    "tests/system/test_d.py": "PAGE = TOP / 'docs/api.md'\nrun('tests/unit/test_a.py')\n",
    "tests/system/test_e.py": "check('lunr.api.main.main', open('lunr.conf.sample'))\n",
}
NEEDS = Sources(FILES).needs()


def of_tests(path: str) -> set[str]:
    """What a test needs, but for what all need."""
    return {one for one in NEEDS[path] if not one.endswith("conftest.py")}


def test_imports_are_followed_wherever_they_are() -> None:
    assert of_tests("tests/unit/test_a.py") == {"lunr/api/main.py"}
    assert NEEDS["lunr/api/main.py"] == {
        *("lunr/__init__.py", "lunr/api/__init__.py", "lunr/common/errors.py")
    }
    assert NEEDS["tools/services/swift.py"] == {"tools/other.py"}


def test_what_is_documentation_names_nothing() -> None:
    assert "lunr/api/main.py" not in NEEDS["lunr/common/errors.py"]
    assert not NEEDS["docs/api.md"]


def test_commands_modules_and_files_are_named_in_strings() -> None:
    assert of_tests("tests/system/test_b.py") == {"lunr/api/main.py"}
    assert of_tests("tests/system/test_c.py") == {"tools/demo", "etc/systemd/lunr-api.service"}
    assert of_tests("tests/system/test_e.py") == {"lunr/api/main.py", "etc/lunr.conf.sample"}


def test_who_names_a_test_does_not_need_it() -> None:
    assert of_tests("tests/system/test_d.py") == {"docs/api.md"}


def test_scripts_need_what_they_name() -> None:
    assert NEEDS["tools/swift"] == NEEDS["tools/demo"] == {"tools/services/swift.py"}
    assert "tools/swift" in NEEDS["tests/support/services.py"]


def test_a_test_needs_the_conftests_above_it() -> None:
    conftests = {"tests/conftest.py", "tests/system/conftest.py"}
    assert conftests <= NEEDS["tests/system/test_b.py"]
    assert "tests/support/services.py" in NEEDS["tests/conftest.py"]


def test_the_distance_is_that_of_the_shortest_way() -> None:
    needs = {"a": {"b", "c"}, "b": {"c"}, "d": {"a"}, "e": {"f"}}
    assert distances(needs, ["c"]) == {"c": 0, "a": 1, "b": 1, "d": 2}
    assert distances(NEEDS, ["tools/other.py"])["tests/unit/test_a.py"] == 5
