"""Demonstrations: one module each, run by tools/demo."""
