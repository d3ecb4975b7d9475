"""Files of weights, whoever wrote them, read without running code from them; and ours, written."""
