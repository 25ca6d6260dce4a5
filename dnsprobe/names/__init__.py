"""DNS names: their forms, the patterns that match them, and the rules."""
