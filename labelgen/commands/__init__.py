"""The commands of `labelgen`, one module each; heavy imports stay inside the functions."""
