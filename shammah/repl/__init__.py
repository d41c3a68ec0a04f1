"""The terminal conversation: input, slash commands, streaming view, status bar."""
