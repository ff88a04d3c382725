"""What one compressed model is, its recipe, report and file; and the frame of every compressor."""
