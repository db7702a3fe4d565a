"""A lazy restore of a block device through dm-clone: the kernel sends reads to what is there."""
