"""What a comparison of runs is made of: paired differences, what was lost, what people chose, and how all that is told."""
