"""Several processes on one store: each labels blocks, none talks to another.

What joins them is the store's folder: its root metadata says that it can be gone on with, receipts
say which blocks are done, the manifest that all is.
"""
