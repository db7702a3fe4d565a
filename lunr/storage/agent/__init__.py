"""The agent of a node: claims jobs, runs them, and keeps node and records in agreement."""
