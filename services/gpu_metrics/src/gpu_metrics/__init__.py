"""What every GPU and model server is doing, now, streamed."""
