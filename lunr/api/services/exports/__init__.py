"""Exports: a volume offered to an initiator."""
