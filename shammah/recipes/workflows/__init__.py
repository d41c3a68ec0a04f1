"""Workflows: stages, what joins them, and a run that survives being killed."""
