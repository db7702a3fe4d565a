"""Real services on loopback: OpenStack Swift and Keystone, from PyPI."""
