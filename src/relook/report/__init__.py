"""A self-contained HTML page about a trained detector."""
