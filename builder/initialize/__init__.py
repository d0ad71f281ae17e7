"""Init: which rule decides which parameter (plan), and the values that it gives (fill), each from its own stream."""
