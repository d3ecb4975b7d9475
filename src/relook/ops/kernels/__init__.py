"""Fast ways to compute what a function of `ops` defines."""
