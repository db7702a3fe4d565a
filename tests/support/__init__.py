"""What tests of every level share: the run's folder, ports, waiting, and real services."""
