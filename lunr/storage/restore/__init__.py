"""Lazy restores on a node: volumes that are used before all of them is local (docs/restores.md)."""
