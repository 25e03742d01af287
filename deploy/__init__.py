"""How Thinbridge is released, deployed and watched: files for other programs, and commands that check them."""
