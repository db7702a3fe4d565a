"""What tools/bench lazy measures, and with what."""
