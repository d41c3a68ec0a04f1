"""Rows of known data sets as conversations, one file each."""
