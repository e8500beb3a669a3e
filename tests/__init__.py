"""Tests of mailfs."""
