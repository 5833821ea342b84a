"""Scores and frames to masks, pictures and films.

Knows no model, no request and no connection.
"""
