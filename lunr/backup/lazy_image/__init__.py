"""A backup as a file: a read-only image, or a volume that is used during its lazy restore."""
