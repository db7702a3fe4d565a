"""Volumes as files of a file system with reflinks."""
