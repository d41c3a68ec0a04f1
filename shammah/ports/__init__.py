"""The protocols that rooms are written against, one file each."""
