"""What `tools/bench live` measures in a guest."""
