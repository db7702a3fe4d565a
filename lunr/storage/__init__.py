"""A storage node: does the API's jobs on real volumes; never touches the database."""
