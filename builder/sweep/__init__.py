"""What comes after a sweep: one table over all of its runs."""
