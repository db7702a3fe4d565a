"""Keys: master keys, where they come from, and what is derived from them."""
