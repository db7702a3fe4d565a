"""The controllers of the API 1.0: from a call to a service and back, one file a thing."""
