"""A project's configuration, llamafarm.yaml, section by section."""
