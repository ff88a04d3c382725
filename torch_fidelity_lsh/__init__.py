"""Outlier-robust precision and recall by locality-sensitive hashing, as a plugin to torch-fidelity."""
