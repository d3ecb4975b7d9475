"""Data sets in YOLO's text files: which files are meant, and what is in them."""
