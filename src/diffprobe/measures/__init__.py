"""Floor 0: tensors in, tensors out."""
