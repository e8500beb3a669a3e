"""What an administrator sees: the control tree and how its contents are written."""
