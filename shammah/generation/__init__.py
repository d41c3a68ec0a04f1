"""From a conversation to a streamed answer: decoding, prefix cache, adapter swap."""
