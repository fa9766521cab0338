"""The AWS services behind the ports; one a module."""
