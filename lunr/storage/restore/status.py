"""The two messages about a lazy restore.

:class:`RestoreStatus` goes from the node to the API: how far the fill is, how fast, how long it
takes, what is wrong, and whether the volume is full. :class:`RestoreSettings` goes from the API to
the node: how eagerly to fill. Between the node and the process that serves a lazy restore, the
status is made up of events and the settings are two commands (lunr/backup/lazy_image/process.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: Damaged objects, and ranges of each, that a reason names.
MAX_DAMAGE_NAMED = 3

#: The fields of the event ``progress`` that a status has.
_PROGRESS = ("done", "total", "rate", "remaining", "damaged", "missing")


@dataclass(frozen=True)
class RestoreStatus:
    """How far a lazy restore is, and what is wrong with it.

    Attributes:
        done: local bytes, of `total`.
        total: bytes of the volume.
        rate: bytes a second.
        remaining: seconds, or None: unknown.
        damaged: parts that can't be fetched, because the backup is damaged.
        missing: parts that are not local yet, the damaged ones included.
        filled: whether all blocks are local.
        process_trouble: why no process serves the volume; None: one does.
        store_trouble: why nothing comes from the store; None: it does.
        fill_trouble: why fetched blocks can't be kept; None: they can.
        given_up: why the fill rests until new settings come; None: it goes on.
        damage: of each damaged object, a sentence.
    """

    done: int = 0
    total: int = 0
    rate: int = 0
    remaining: int | None = None
    damaged: int = 0
    missing: int = 1
    filled: bool = False
    process_trouble: str | None = None
    store_trouble: str | None = None
    fill_trouble: str | None = None
    given_up: str | None = None
    damage: Mapping[str, str] = field(default_factory=dict)

    def apply_event(self, event: str, fields: Mapping[str, Any]) -> RestoreStatus:
        """The status after an event of the process; other events change nothing."""
        match event:
            case "progress":
                return replace(self, **{name: fields[name] for name in _PROGRESS if name in fields})
            case "trouble":
                return replace(self, fill_trouble=fields["reason"])
            case "store":
                return replace(self, store_trouble=fields["reason"])
            case "given_up":
                return replace(self, given_up=fields["reason"])
            case "damaged":
                damage = {id: text for id, text in self.damage.items() if id != fields["object"]}
                if fields["ranges"]:
                    damage[fields["object"]] = _describe_lost(fields["ranges"], fields["reason"])
                return replace(self, damage=damage)
            case "filled":
                return replace(self.without_trouble(), filled=True)
        return self

    def without_trouble(self) -> RestoreStatus:
        """The status with all trouble forgotten: it is over, or the next process finds it again."""
        return replace(self, store_trouble=None, fill_trouble=None, given_up=None, damage={})

    def as_plain(self) -> RestoreStatus:
        """The status of a volume that needs no process any more."""
        return replace(self.without_trouble(), process_trouble=None)

    def with_new_settings(self) -> RestoreStatus:
        """The status as new settings come: the fill tries damaged parts again."""
        return replace(self, given_up=None, damaged=0)

    @property
    def damage_sentences(self) -> list[str]:
        """What can't be fetched, a sentence each."""
        return list(self.damage.values())

    @property
    def trouble(self) -> str | None:
        """Why some blocks can't be had now, some sentences; None: all can, as far as is known."""
        if self.process_trouble is not None:
            return self.process_trouble
        reason = self.store_trouble or self.fill_trouble or self.given_up
        sentences = [*([reason] if reason else []), *self.damage_sentences[:MAX_DAMAGE_NAMED]]
        return " ".join(sentences) or None

    @property
    def is_stuck(self) -> bool:
        """Whether nothing is left to fetch but what is damaged."""
        return 0 < self.missing <= self.damaged

    def as_report(self) -> dict[str, Any]:
        """The field ``fill`` of a job's report to the API (docs/api.md)."""
        return {"rate": self.rate, "remaining": self.remaining, "trouble": self.trouble}


@dataclass(frozen=True)
class RestoreSettings:
    """How a lazy restore is to be filled.

    Attributes:
        mode: eager, lazy or never.
        limit: bytes a second that the fill may fetch; 0: no limit.
        others_wait: whether other volumes wait for a worker slot. The process is not told.
    """

    mode: str = "never"
    limit: int = 0
    others_wait: bool = field(default=False, compare=False)

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> RestoreSettings:
        """The settings in the payload of ``volume.fill``, or in an answer to a report of it."""
        return cls(
            str(message["fill"]),
            int(message["fill_limit_bytes"]),
            bool(message.get("others_wait")),
        )

    def commands(self) -> tuple[str, ...]:
        """The commands that tell a process."""
        return (f"fill {self.mode}", f"limit {self.limit}")


def _describe_lost(ranges: list[list[int]], reason: str) -> str:
    """A sentence on what can't be had.

    >>> _describe_lost([[0, 4096], [8192, 8200]], "The object x is lost.")
    "Bytes 0 to 4096, 8192 to 8200 can't be had: The object x is lost."
    """
    named = ", ".join(f"{start} to {end}" for start, end in ranges[:MAX_DAMAGE_NAMED])
    more = len(ranges) - MAX_DAMAGE_NAMED
    suffix = f" and {more} more ranges" if more > 0 else ""
    return f"Bytes {named}{suffix} can't be had: {reason}"
