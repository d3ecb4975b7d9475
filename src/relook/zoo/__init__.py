"""Facts: names, settings, figures and weights of published models."""
