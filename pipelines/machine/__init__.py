"""Cores, threads, memory, admission, checks before the start and the watch over child processes.

Knows no media, no models and no protocol.
"""
