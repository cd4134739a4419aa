"""Floor 4: findings drawn as charts and laid out as one offline page."""
