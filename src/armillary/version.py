"""The version of this build, written once."""

__version__ = "0.1.0"
