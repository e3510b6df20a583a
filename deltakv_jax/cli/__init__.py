"""The command line: arguments in, one line per error out, work done elsewhere."""
