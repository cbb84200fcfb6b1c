"""About this machine. doctor: what it has and lacks. bench: how fast it is."""
