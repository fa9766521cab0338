"""How players, model servers and the cloud behave, in virtual and in real time."""
