"""The two metrics as mathematics on features; knows nothing of torch-fidelity."""
