"""Volumes and snapshots in a thin pool of LVM."""
