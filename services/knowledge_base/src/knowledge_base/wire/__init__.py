"""Between messages and the domain; nothing is decided here."""
