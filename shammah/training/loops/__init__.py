"""Training methods on one loop: `engine` runs the steps, each other file is what a step learns."""
