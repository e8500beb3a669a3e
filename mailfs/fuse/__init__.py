"""The adapter: kernel requests become calls on the core, refusals become errnos. No policy here."""
