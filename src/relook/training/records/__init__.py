"""What a training writes and watches: rows of metrics, states to go on from, losses that are not finite."""
