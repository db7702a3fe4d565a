"""A backup as a file: read-only to look into it, or under a volume that fills while it is used."""
