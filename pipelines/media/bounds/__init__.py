"""What a file may cost, in memory and time, by its bytes: before FFmpeg or Pillow reads it."""
