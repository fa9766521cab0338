"""What stands around every call a server handles; the order is in `servicekit.server`."""
