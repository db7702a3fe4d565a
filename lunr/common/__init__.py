"""The modules that all packages of lunr share; they import nothing else of lunr."""
