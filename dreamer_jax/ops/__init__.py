"""Pure maths: no parameters, no modules, no state."""
