"""Samples -> batches for training and tests; a broken image is skipped, counted, listed, and ends no run."""
