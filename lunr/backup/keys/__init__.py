"""Master keys, where they come from, and the keys that are derived from them."""
