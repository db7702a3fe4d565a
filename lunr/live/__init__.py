"""Backup of running virtual machines (QEMU), all disks at one instant."""
