"""Data sets as people have them: one reader for each layout."""
