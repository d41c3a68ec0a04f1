"""Implementations of ports that speak to someone else's system, one file each."""
