"""The backup engine: knows no API, no database and no eventlet."""
