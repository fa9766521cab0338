"""One process that plays all GPU hosts: a simulated model server and a real agent for each."""
