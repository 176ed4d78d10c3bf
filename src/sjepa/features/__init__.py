"""Quantities computed from signals: MFCC, effective rank."""
