"""What tools/test starts."""

from __future__ import annotations

import os
import sys

from tools.testing.main import main

if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    sys.exit(main(sys.argv[1:]))
