"""Weights in and out: safe reading, strict loading, recognising files, files that describe themselves."""
