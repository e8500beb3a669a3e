"""Tests on a real mount with real clients."""
