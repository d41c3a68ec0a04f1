"""`python -m shammah` is the `shammah` command."""

from shammah.cli.main import command

if __name__ == "__main__":
    command()
