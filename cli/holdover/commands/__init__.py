"""The commands, one module each; `holdover.main` loads them when they are called."""
