"""Experiments that combine methods and models."""
