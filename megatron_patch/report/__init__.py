"""One page about runs: reads what training wrote, stitches restarts, thins curves, writes HTML. Imports no torch."""
