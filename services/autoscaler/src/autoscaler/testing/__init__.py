"""What tests of the autoscaler use: builders of snapshots and in-memory outside systems."""
