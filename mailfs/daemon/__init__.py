"""The life of a mount: configuration, start, logging; what to tell the service manager."""
