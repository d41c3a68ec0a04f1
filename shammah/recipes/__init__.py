"""Workflows built of stages, and the ready ones that train an adapter with one command."""
