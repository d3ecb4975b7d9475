"""Data sets written in another format than they were read in."""
