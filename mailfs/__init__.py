"""mailfs: a filesystem over a mail spool that makes mbox files safe for programs that do not agree on locking."""

__version__ = "0.1.0"
