"""Which devices train, in which processes."""
