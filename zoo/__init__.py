"""How the shipped weights were made: training, the attribute classifier, evaluation, model cards."""
