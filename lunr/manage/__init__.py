"""The operator's tool for the database, the keys and the store, without the API."""
