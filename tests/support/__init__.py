"""What tests of every level share: the run's folder, ports, waiting, and real services."""

from __future__ import annotations

import pytest

# Its assertions are told apart like those in test modules.
pytest.register_assert_rewrite("tests.support.pool_contract")
