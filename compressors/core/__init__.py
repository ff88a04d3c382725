"""What one compressed model is: the model, its recipe, its report, its file."""
