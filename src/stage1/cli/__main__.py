"""`python -m stage1.cli`."""

from stage1.cli import main

main()
