"""A backup is read: which objects hold which bytes, a restore, one file of many readers."""
