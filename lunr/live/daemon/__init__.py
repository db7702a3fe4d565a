"""The daemon that backs up the machines of a hypervisor."""
