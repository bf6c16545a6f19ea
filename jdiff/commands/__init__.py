"""One file per command of the command line: its flags, and what it does. ``cli`` has the table of them."""
