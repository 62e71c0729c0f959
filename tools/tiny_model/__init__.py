"""The recipe for Llamastead Tiny, the demonstration model that ships with the server.

The package holds everything that the model is made of: the text it reads, the
lessons it is taught, the tokenizer, the training loop, the export to GGUF and the
evaluation. `tools/train_tiny_model.py` is the command in front of it.
"""
