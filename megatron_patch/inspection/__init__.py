"""What is in a checkpoint or a data file, as lines of text."""
