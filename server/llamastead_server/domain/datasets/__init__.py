"""Files on their way to being searchable: uploads, parsing rules, chunks, ingestion."""
