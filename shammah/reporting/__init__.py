"""One run, adapter or evaluation as a page to hand on: gathered, drawn, written."""
