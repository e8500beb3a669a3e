"""Tests of the bridge on real mounts."""
