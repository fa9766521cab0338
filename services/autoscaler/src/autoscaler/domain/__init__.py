"""The control law, pure: what is known goes in, a decision with its reasons comes out."""
