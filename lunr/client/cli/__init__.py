"""The command `lunr`."""
