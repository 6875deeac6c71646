"""Stage-1 Pro inside other people's tools. Each file needs the tool it is named after; nothing else imports it."""
