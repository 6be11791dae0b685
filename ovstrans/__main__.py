"""`python -m ovstrans` is `ovstrans`, where torchrun or another interpreter has to start it."""

from ovstrans.cli.main import main

if __name__ == "__main__":
    main()
