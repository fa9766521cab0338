"""The SDK for game services and the gamekeeper command line."""
