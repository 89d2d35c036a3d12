"""The master process and the memory it shares with its workers."""
