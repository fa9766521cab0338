"""What the knowledge base knows and decides; pure."""
