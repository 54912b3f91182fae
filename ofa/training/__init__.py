"""How a supernet learns."""
