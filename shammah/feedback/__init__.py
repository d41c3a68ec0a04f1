"""What was said and what the user thought of it: exchanges, ratings, the buffer, the sampler."""
