"""Model repositories: what is on disk, which versions serve, how models are completed, loaded and found."""
