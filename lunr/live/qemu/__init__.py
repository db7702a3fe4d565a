"""What a running QEMU is asked and told: QMP, NBD, its guest agent, its command line."""
