"""What the tests with real clients share: users, mounts, processes, mailboxes."""
