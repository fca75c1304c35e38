"""The commands, nothing else: arguments in, the Python interface called, results shown."""
