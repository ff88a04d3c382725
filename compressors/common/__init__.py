"""What all folders share: checks of arguments, runs of a model, files, text."""
