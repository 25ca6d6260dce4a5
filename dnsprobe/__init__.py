"""dnsprobe: which process, with which ancestors, asks for which DNS name."""

__version__ = "0.1.0"
