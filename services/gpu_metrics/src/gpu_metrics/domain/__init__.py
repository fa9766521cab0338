"""The fleet as pure values and functions of time: no clock, network, SDK or generated code."""
