"""Exports by tgtd, the iSCSI target in user space."""
