"""What agents write, kept apart until it is committed as a whole."""
