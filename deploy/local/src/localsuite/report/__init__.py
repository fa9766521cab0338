"""The evening on paper: what happened, whether it held, what was simulated."""
