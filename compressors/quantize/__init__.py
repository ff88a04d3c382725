"""Post-training quantization and clipping, by brevitas."""
