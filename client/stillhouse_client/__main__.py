"""`python -m stillhouse_client` is the `stillhouse` command."""

from stillhouse_client.cli import main

if __name__ == "__main__":
    main()
