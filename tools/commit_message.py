"""Checks the first line of a commit message; git starts it by the hook tools/hooks/commit-msg."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

LONGEST = 72

#: First lines that git itself writes.
_MADE_BY_GIT = re.compile(r'(Merge|Revert "|Reapply "|fixup!|squash!|amend!) ?')
_AREAS = r"[a-z][\w./-]*(, [a-z][\w./-]*)*"
_SUBJECT = re.compile(rf"{_AREAS}: (?P<verb>\S+)")

#: Imperatives that end as other forms of a verb do.
_IMPERATIVES = {
    *("bring", "ping", "ring", "spring", "string", "swing"),
    *("bed", "embed", "exceed", "feed", "heed", "need", "proceed", "seed", "shed", "speed"),
    *("alias", "focus", "bias"),
}


def faults(message: str) -> Iterator[str]:
    """What is wrong with the first line of `message`; lines that git leaves out don't count."""
    lines = [line for line in message.splitlines() if not line.startswith("#")]
    subject = next((line for line in lines if line.strip()), "")
    if not subject or _MADE_BY_GIT.match(subject):  # an empty message ends the commit anyway
        return
    if len(subject) > LONGEST:
        yield f"it has {len(subject)} characters, more than {LONGEST}"
    if subject.endswith("."):
        yield "it ends in a full stop"
    parts = _SUBJECT.match(subject)
    if not parts:
        yield "it does not begin with an area and a colon, as in 'storage: wipe COW areas'"
    elif not _is_imperative(parts["verb"]):
        yield f"'{parts['verb']}' is no imperative in lower case, as 'add' and 'mend' are"


def _is_imperative(word: str) -> bool:
    """Whether `word` may be an imperative: it does not look like another form of a verb."""
    if word in _IMPERATIVES:
        return True
    return bool(re.fullmatch(r"[a-z][\w'-]*", word)) and not re.search(r"(ed|ing|[^s]s)$", word)


def main(path: Path) -> int:
    """Refuse the message in the file at `path`, or let it pass."""
    found = list(faults(path.read_text(errors="replace")))
    for fault in found:
        print(f"commit-msg: the first line: {fault}", file=sys.stderr)
    if found:
        print(
            f"commit-msg: docs/contributing.md has the rule; {path} has the message",
            file=sys.stderr,
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
