"""Which engine computes a model, and the proof that it agrees with torch. Knows no media."""
