"""Storage nodes: records, heartbeats, reconciling."""
