"""The tokenizer; a flat sibling because it travels to the Hub."""
