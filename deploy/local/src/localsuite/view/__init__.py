"""What a person sees while the suite runs: a live screen, or plain lines."""
