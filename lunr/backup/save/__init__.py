"""Saving a backup: find, pack and store the changed blocks; store the root last."""
