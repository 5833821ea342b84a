"""Scores and frames to masks, pictures and overlay videos.

Knows no model, no request and no connection.
"""
