"""`python -m shammah.cli`, which `accelerate launch -m` starts in each of its processes."""

from shammah.cli.main import command

command()
