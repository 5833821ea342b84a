"""Flags and the settings file: what an operator says, checked before anything heavy is imported.

Knows no network and no media.
"""
