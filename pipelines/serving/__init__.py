"""Triton's door: endpoints, sessions, the process. The only room that knows PyTriton."""
