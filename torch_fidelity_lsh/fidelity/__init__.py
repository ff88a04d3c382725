"""The plugin: registered metrics in torch-fidelity's calls, its inputs, extractors and ranks."""
