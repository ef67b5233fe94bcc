"""The commands of `labelstore`, a module each."""
