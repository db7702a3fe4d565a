"""Volumes that are used while they are filled from a backup: the node's side (docs/restores.md)."""
