"""Tests of `mailfs.checking`."""
