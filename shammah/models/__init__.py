"""Base models: finding, loading and describing them."""
