"""Data sets in Pascal VOC's XML: which files are meant, and what is in them."""
