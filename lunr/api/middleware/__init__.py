"""WSGI middleware, one file each; what a file says first is for the operator."""
