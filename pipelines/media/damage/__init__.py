"""What is left of media that are damaged or cut off, and which of their frames are damaged."""
