"""What happens, told to whoever listens: telemetry here, loggers for other tools."""
