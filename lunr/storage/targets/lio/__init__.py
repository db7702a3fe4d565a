"""Exports by LIO, the kernel's iSCSI target."""
