"""Everything between encoded bytes and typed answers, in rooms; importing this package imports nothing.

`docs/architecture.md` shows the rooms and their order; each says in its `__init__.py` what it owns.
"""
