"""Other servers for the same job, each started as a program of its own."""
