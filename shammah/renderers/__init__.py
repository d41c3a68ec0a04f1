"""Messages to tokens and back, one file per way of writing a conversation down."""
