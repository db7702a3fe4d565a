"""How all of lunr's programs show their help."""

from __future__ import annotations

#: What the outermost command of each program is made with (click): those below take it over.
HELP = {"help_option_names": ["-h", "--help"]}
