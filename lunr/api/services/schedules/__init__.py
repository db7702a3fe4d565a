"""Schedules: when backups are made by themselves."""
