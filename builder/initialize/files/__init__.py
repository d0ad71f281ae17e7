"""Files that hold tensors: which there are, what is in them, and their values, without trusting a header."""
