"""The heart: feedback -> lessons -> job -> worker process -> published adapter."""
