"""Tools that runs are written to, one a file."""
