"""Backups, backup groups, garbage collection, verification, records to export and import."""
