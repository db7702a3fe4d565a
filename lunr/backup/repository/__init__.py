"""One account's objects: its backups, writer sessions, garbage, verification, quarantine."""
