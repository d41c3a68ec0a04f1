"""Evaluation: a model's answers scored, summed up, compared, and held against targets."""
