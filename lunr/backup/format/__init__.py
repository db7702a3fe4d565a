"""The bytes of the storage format, version 1: pure functions, described in docs/format.md."""
