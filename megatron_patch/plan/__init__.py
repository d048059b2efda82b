"""A run on paper: what each GPU's memory holds, and whether it fits. Imports no torch."""
