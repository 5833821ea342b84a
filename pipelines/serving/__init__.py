"""Triton's door: endpoints, sessions, canary. The only room that knows PyTriton; only server.py opens it."""
