"""Processes of the suite: started together, watched, restarted within bounds, stopped."""
