"""What was found in an image: as values, in COCO's format, drawn."""
