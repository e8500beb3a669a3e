"""Conformance: what holds on a plain directory and must hold on mailfs."""
