"""Floor 5: studies, the directory of a run, executing it, and what comes of it."""
