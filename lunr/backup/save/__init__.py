"""A backup is written: what has changed is found, packed and stored; the root comes last."""
