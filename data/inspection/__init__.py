"""`kinoise inspect`: what a data set holds, what is wrong with it, and what its numbers seem to be."""
