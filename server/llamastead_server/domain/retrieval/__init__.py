"""From a question to ranked chunks: databases, plans, searches, fusion."""
