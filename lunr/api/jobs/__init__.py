"""The machinery of jobs: queue, claims, leases, completion."""
