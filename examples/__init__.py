"""Worked examples: something small is trained, and the geometry probe looks at it."""
