"""The neural speech tokenizer: an encoder trained by joint-embedding prediction (stage 1), whose
quantised features a decoder turns back into audio (stage 2)."""
