"""What each verb of the command line does; ``cli`` reads the flags and calls."""
