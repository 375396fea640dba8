"""These ops behind the names of other projects, each a module of its own."""
