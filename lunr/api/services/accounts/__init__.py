"""Accounts, their tokens and quotas."""
