"""The model on paper: sizes, rotary positions, position limit, rows of the vocabulary. Imports no torch."""
