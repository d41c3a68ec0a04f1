"""Ready ways to an adapter, each with one command; `workflows` is what they are built of."""
