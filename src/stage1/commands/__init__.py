"""What a user asks of finished runs, bundles and files; nothing here is a stage."""
