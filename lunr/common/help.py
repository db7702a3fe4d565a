"""The help options of all of lunr's programs."""

from __future__ import annotations

#: The settings of the outermost click command of each program; its subcommands inherit them.
HELP = {"help_option_names": ["-h", "--help"]}
