"""Tests of the adapter that need no mount."""
