"""How many processes a load needs: measured costs, and the capacity computed from them."""
