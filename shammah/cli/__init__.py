"""Subcommands: everything the chat can do, for scripts."""
