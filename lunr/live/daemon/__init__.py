"""The program that backs machines up by schedule."""
