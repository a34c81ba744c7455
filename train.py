"""python train.py +experiment=NAME [overrides]: see README.md."""

from drgrade.cli.train import main

if __name__ == "__main__":
    main()
