"""How volumes are exported: :mod:`base` says what a target can do, one module a driver does it."""
