"""Tokens: issue and redeem them, store their digests."""
