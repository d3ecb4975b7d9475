"""Files to batches: reading any layout, judging it, preparing images, and pictures made up to try things."""
