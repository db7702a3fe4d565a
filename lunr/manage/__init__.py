"""What an operator does without the API: to the database, the keys and the store."""
