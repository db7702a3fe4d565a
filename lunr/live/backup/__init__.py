"""A live backup: all disks of a machine at one instant, in one backup group."""
