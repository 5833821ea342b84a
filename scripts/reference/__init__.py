"""Pages made from the code: `python -m scripts.reference.openapi` and `.codecs`."""
