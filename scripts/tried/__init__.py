"""Models that people have, served and asked: whether the answers are those that were measured of them."""
