"""What a gate is made of: which quantity a rule names, what the runs say of it, and what follows."""
