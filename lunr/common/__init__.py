"""What every part of lunr shares; imports nothing else of lunr."""
