"""Tokenizers with the class names, arguments, methods and ids that Hugging Face transformers 4 documents.

A slow tokenizer works in Python or SentencePiece, a fast one in the library `tokenizers`. `pairs` has what all of them
share, `slow`, `fast` and `sentence_piece` what the six classes are made of.
"""
