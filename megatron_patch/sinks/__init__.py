"""Where a run's numbers go, beside the log's lines: one file a place, behind one small interface."""
