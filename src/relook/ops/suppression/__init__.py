"""Suppression with rules of its own: caps for each class, scores that decay."""
