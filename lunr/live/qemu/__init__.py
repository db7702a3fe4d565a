"""The interfaces of a running QEMU: QMP, NBD, its guest agent, its command line."""
