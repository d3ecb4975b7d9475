"""Training: a detector, a recipe and data in; weights, metrics and a log out."""
