"""Metrics: how good a list of detections is."""
