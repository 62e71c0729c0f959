"""From a request to an answer: messages, sessions, prompts, tools, completions."""
