"""Where volumes live: :mod:`base` says what a pool can do, one module a driver does it."""
