"""What every command does at its border, and how its work is spread over processes."""
