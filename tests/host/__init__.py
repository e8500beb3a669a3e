"""Tests of the host: real processes and the user database."""
