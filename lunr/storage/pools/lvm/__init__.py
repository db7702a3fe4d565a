"""Volumes as thick logical volumes, snapshots by dm-snapshot."""
