"""The Alpaca recipe: seed tasks -> data -> training -> a model to talk to."""

__version__ = "0.1.0"
