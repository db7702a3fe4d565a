"""The records: models, migrations, transactions, and the one way to change a status."""
