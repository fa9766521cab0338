"""What the knowledge base talks to; one outside system per module."""
