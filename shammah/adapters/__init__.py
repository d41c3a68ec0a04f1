"""Adapters on disk: the library, what is known of each, the checks before one is used."""
