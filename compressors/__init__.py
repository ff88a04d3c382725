"""Adapters that compress generators: quantization by brevitas, structured pruning by torch-pruning.

Nothing here yet; the adapters arrive with the compression study.
"""
