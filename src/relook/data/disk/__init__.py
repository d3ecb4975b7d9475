"""Files of strangers: what may be read, how much of it, in which encoding, and where it lies."""
