"""Data sets in COCO's JSON: which files are meant, and what is in them."""
