"""Floor 2: one file a family of models; heavy imports stay inside."""
