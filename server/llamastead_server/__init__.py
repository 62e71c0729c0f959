"""The Llamastead server."""
