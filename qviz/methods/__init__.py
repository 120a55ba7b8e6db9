"""Quantization methods, one paper or system per file, and their registry."""
