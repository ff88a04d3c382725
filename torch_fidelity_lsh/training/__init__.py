"""Precision and recall while a model trains: for loops of one's own, accelerate, and Lightning."""

from torch_fidelity_lsh.training.monitor import TrainingMonitor, to_tensorboard

__all__ = ["TrainingMonitor", "to_tensorboard"]
