"""Stage 2 of the tokenizer: quantised features of the frozen encoder, and a decoder that turns them
back into audio."""
