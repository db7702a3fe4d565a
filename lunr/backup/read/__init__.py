"""Reading a backup: read plans, restores, and chunks for many readers at once."""
