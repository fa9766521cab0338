"""The game: players who come and go, what they ask for, and a storyteller who remembers."""
