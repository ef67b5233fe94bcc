"""Exact replay of stored views: betons of source bytes, and loaders that cut views from them."""
