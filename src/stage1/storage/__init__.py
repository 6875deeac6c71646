"""What lies on disk: files that are whole or not there, digests and the lock, JSON documents, folders that swap in
one step.
"""
