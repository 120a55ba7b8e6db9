"""Exercises: the learner's own code, run beside the true one. Numerics only, no user interface."""
