"""Damaged media by the thousand, and whether opening them ever costs more than an error."""
