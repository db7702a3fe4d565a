"""How the tests are run: tools/test."""

#: By this name tests/conftest.py finds what records the tests for tools/test.
RECORDER = "lunr-recorder"
LEVELS = ("style", "unit", "functional", "system", "crash", "vm")
