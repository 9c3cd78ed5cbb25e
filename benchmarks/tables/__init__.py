"""Generated tables of the README and of docs/."""
