"""What the process that serves a filling volume tells of the fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lunr.storage.restore.spec import Progress

#: Damaged objects, and ranges of each, that a reason names.
DAMAGE_TOLD = 3


class RestoreStatus:
    """How far a volume is, and what is wrong with it.

    Attributes:
        progress: how far it is.
        store_trouble: why nothing comes from the store; None: it does.
        fill_trouble: why what comes can't be kept; None: it can.
        given_up: why the fill does not go on until it is ordered again; None: it does.
    """

    def __init__(self) -> None:
        self.progress = Progress()
        self.store_trouble: str | None = None
        self.fill_trouble: str | None = None
        self.given_up: str | None = None
        self._damaged: dict[str, str] = {}

    def hear(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take over what an event says (lunr/backup/lazy_image/process.py)."""
        match event:
            case "progress":
                known = Progress.__dataclass_fields__
                self.progress = Progress(**{k: v for k, v in fields.items() if k in known})
            case "trouble":
                self.fill_trouble = fields["reason"]
            case "store":
                self.store_trouble = fields["reason"]
            case "given_up":
                self.given_up = fields["reason"]
            case "damaged":
                self._damaged.pop(fields["object"], None)
                if fields["ranges"]:
                    self._damaged[fields["object"]] = _lost(fields["ranges"], fields["reason"])

    def all_is_well(self) -> None:
        """Forget what was wrong: all is there, or nobody knows any more what is."""
        self.store_trouble = self.fill_trouble = self.given_up = None
        self._damaged.clear()

    @property
    def damaged(self) -> list[str]:
        """What can't be fetched, a sentence each."""
        return list(self._damaged.values())

    @property
    def trouble(self) -> str | None:
        """Why not all of it can be had now, some sentences; None: it can, as far as is known."""
        reason = self.store_trouble or self.fill_trouble or self.given_up
        told = [*([reason] if reason else []), *self.damaged[:DAMAGE_TOLD]]
        return " ".join(told) or None

    @property
    def is_stuck(self) -> bool:
        """Whether nothing is left to fetch but what is damaged."""
        return 0 < self.progress.missing <= self.progress.damaged


def _lost(ranges: list[list[int]], reason: str) -> str:
    """A sentence on what can't be had.

    >>> _lost([[0, 4096], [8192, 8200]], "The object x is lost.")
    "Bytes 0 to 4096, 8192 to 8200 can't be had: The object x is lost."
    """
    told = ", ".join(f"{start} to {end}" for start, end in ranges[:DAMAGE_TOLD])
    more = f" and {len(ranges) - DAMAGE_TOLD} more ranges" if len(ranges) > DAMAGE_TOLD else ""
    return f"Bytes {told}{more} can't be had: {reason}"
