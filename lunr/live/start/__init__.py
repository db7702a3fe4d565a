"""A machine that starts from a backup which is not fetched yet."""
