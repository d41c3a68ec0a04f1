"""The database: where exchanges, feedback, jobs and activations are kept."""
