"""Volumes: create, place, clone, restore lazily, copy to another node; their types."""
