"""Starting a machine from a backup group before its data is fetched."""
