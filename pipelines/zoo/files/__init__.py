"""Model files and state dicts to drafts of a ModelSpec."""
