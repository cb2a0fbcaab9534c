"""From the world to ids and back: one vocabulary, and a tokenizer for each kind of thing in it."""
