"""The published models, one file for each family."""
