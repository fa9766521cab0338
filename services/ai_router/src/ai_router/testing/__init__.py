"""What tests of the router, and of what uses its policy, build on."""
