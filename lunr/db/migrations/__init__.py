"""The schema's history; run by :mod:`lunr.db.migrate`."""
