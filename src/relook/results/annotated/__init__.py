"""What is annotated, drawn: for people who look at their data before they train."""
