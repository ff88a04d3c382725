"""Structured channel pruning, by torch-pruning."""
