"""What outcomes say."""
