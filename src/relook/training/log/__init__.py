"""What a training says while it runs, and the watch over its losses."""
