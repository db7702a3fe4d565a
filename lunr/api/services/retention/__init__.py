"""Retention: which backups are kept, and why."""
