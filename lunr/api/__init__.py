"""The API service: WSGI in front, the services behind, never a block device."""
