"""A guest that writes without end, to be backed up live."""
