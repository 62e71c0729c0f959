"""What models are asked for, and what they answer: generation, embeddings, reranking, settings."""
