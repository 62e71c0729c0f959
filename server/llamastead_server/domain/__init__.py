"""The rules of chat and retrieval: standard library and pydantic only."""
