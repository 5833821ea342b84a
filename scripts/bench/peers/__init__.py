"""Others that do the same job: servers, and a loop by hand. Each is started as a program of its own."""
