"""From an upright uint8 image and its boxes and masks to what the network sees."""
